"""A batch -> velocities -> losses or samples: pure functions and `nn.Module`s, no input or output but loading.

backbone.py   find and load a Wan transformer, VAE and text encoder (folder, hub id); tiny.py the one that ships
network.py    the joint network on diffusers' own Wan blocks; tokens.py its sequence, blocks.py one block;
              attention.py the kernel of its attention
assemble.py   a network from a backbone, or from a configuration and its weights
skeleton.py   a backbone's shapes without its weights; published.py those of the 5B
sharding.py   FSDP2: a network cut over processes, and whole again; deferred.py its weights, each process its own rows
adapters.py   LoRA through peft: what trains, what is frozen, the audit of trained keys
noise.py      asynchronous noise sampling and its two baselines
losses.py     masked squared errors as sums and counts
sampler.py    asynchronous denoising; solver.py its UniPC steps; compiled.py one network call compiled
reference.py  X-WAM checkpoint names <-> ours
parity.py     our network and sampler against golden tensors of the reference
"""
