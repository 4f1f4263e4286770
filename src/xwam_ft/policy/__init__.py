"""A network and its contract -> actions.

policy.py     Policy: observation in, commands out; imagined futures; batches of clips
text.py       encoded instructions, kept from one request to the next
bundle.py     the folder a policy is shipped in: written, verified, read
selfcheck.py  a recorded observation and the action it gave, and how closely they must repeat
"""
