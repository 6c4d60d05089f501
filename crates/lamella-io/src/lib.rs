//! Foreign formats: safetensors, Hugging Face directories, llama2.c checkpoints.
