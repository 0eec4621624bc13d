# venv NAME REQUIREMENTS: prints the Python of a virtual environment in the target folder that has these packages.
venv() {
  local dir=${CARGO_TARGET_DIR:-target}/venv-$1
  if ! cmp -s "$2" "$dir/requirements.txt"; then
    python3 -m venv --clear "$dir" && "$dir/bin/pip" install --quiet --disable-pip-version-check -r "$2" >&2 || return
    cp "$2" "$dir/requirements.txt"
  fi
  echo "$dir/bin/python"
}
