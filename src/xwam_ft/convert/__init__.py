"""Foreign checkpoints in, our backbone folders out: X-WAM's (DeepSpeed, flattened, safetensors) and Wan's own files."""
