# Building and running the images of firmware/. Sourced from the root of the repository.
#
# ARM_CARGO is the cargo to use, called as `$ARM_CARGO TRIPLE ARGS...` (default: scripts/arm-cargo). ARM_SHELL is a shell
# that has the cross tools, fed with commands on its standard input (default: bash).
read -ra arm_cargo <<<"${ARM_CARGO:-$PWD/scripts/arm-cargo}"
read -ra arm_shell <<<"${ARM_SHELL:-bash}"
triple=thumbv7em-none-eabi
images=target/firmware/$triple/release

# firmware_tools COMMAND=PACKAGE...: sees that the cross tools are there.
firmware_tools() {
  local tool missing=()
  for tool in "$@"; do
    "${arm_shell[@]}" <<<"command -v ${tool%=*}" >/dev/null 2>&1 || missing+=("${tool%=*} (Debian package ${tool#*=})")
  done
  ((${#missing[@]} == 0)) && return
  echo "$0: these tools are missing where the images are built:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  return 1
}

# firmware_build ARGS...: the images, as small as they are shipped.
firmware_build() {
  (cd firmware && "${arm_cargo[@]}" "$triple" build --release --locked --quiet --target-dir ../target/firmware "$@")
}

# firmware_link NAME: what a firmware carries that calls this one function of the proof.
firmware_link() {
  "${arm_shell[@]}" <<<"arm-none-eabi-ld --gc-sections -e $1 -u $1 -o target/firmware/$1.elf $images/libproof.a"
}
