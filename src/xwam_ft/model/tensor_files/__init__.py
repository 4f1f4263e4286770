"""Tensors in files, read piece by piece: safetensors and PyTorch zips (torch_zip.py), copied as a stream to shards."""
