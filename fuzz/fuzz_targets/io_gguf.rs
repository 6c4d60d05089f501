#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lamella_io::fuzzing::gguf(data));
