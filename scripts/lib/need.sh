# need COMMAND PACKAGE: sees to a command that comes with a Debian package; 1 where it is missing and can't be had.
need() {
  PATH=$PATH:/usr/sbin command -v "$1" >/dev/null && return
  local root=()
  [[ $EUID == 0 ]] || root=(sudo -n)
  if command -v apt-get >/dev/null && { [[ $EUID == 0 ]] || sudo -n true 2>/dev/null; }; then
    echo "== installing $2" >&2
    "${root[@]}" apt-get install -y -q --no-install-recommends "$2" >/dev/null 2>&1 ||
      { "${root[@]}" apt-get update -q >/dev/null && "${root[@]}" apt-get install -y -q --no-install-recommends "$2" >/dev/null; } ||
      true
  fi
  PATH=$PATH:/usr/sbin command -v "$1" >/dev/null || { echo "missing: $1 (Debian package $2)" >&2; return 1; }
}
