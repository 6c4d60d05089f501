#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lamella_entropy::fuzzing::fuzz_models(data));
