# `just` lists what there is; `just verify` is what must pass before a push.

export CARGO_TARGET_DIR := env("CARGO_TARGET_DIR", env("HOME") / ".cache/strongroom/target")

[private]
default:
    @just --list

# Format, lints, documentation, bans and licences, every test: changes no file
verify:
    deploy/test

# The quick part of `verify`: no server is started
check:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    cargo deny --locked check bans licenses sources

# Rewrites files: format, and what clippy can repair by itself
fix:
    cargo fmt --all
    cargo clippy --locked --workspace --all-targets --fix --allow-dirty --allow-staged

# Every test, or those that match: `just test forwarding`
test *args:
    cargo nextest run --locked --workspace {{args}}

# Three nodes behind HAProxy on this machine; `just demo stop` ends them
demo *args:
    deploy/try-it {{args}}

# Requests per second, restart time and memory, beside an OpenBao cluster
bench *args:
    deploy/bench/run {{args}}
