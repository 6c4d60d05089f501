#!/bin/sh
# Compiles for tools/fuzz.py: coverage counters go into our own crates and the fuzz targets only, which keeps the build
# short and the counters to the point. Cargo calls it as `fuzz_rustc.sh rustc ARGUMENTS`.
case " $* " in
*" --crate-name lamella_"* | *"/fuzz_targets/"* | *" fuzz_targets/"*) exec "$@" -Ccodegen-units=1 $LAMELLA_FUZZ_FLAGS ;;
*) exec "$@" ;;
esac
