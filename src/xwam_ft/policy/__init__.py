"""A network and its contract -> actions.

policy.py     Policy: observation in, commands out; imagined futures; batches of clips
settings.py   how it samples where a request says nothing else
request.py    what else a call takes and gives: options, warnings, an example observation
replay.py     the same interface answered from a recorded episode, without weights
text.py       encoded instructions, kept from one request to the next; text_encoder.py a bundle's own, for others
source.py     where a policy comes from: a bundle, or a run's checkpoint
bundle.py     the folder a policy is shipped in: written, verified, read
novelty.py    how unlike the training pictures an observation is
selfcheck.py  a recorded observation and the action it gave, and how closely they must repeat

server.py     a policy at a WebSocket, by openpi's protocol
serve.py      `xwam-ft serve`: what to load, the API key, signals
messages.py   what the server says: metadata, answers
wire.py       arrays in msgpack, read within bounds
metrics.py    requests and latency quantiles, as Prometheus reads them
client.py     the robot's side, without torch
"""
