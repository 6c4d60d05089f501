#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lamella_weights::fuzzing::progressive(bytes));
