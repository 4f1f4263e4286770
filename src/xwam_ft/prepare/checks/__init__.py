"""The linter: one concept a file, each a few functions that return `Finding`s (findings.py has their names).

Of one episode, while it is worked on
    files.py          files there, videos as long as the table, long enough
    table.py          columns there and finite; the instruction
    timing.py         dropped frames, jitter, the wrong rate
    numbers.py        failed reads, jumps, what never moves, what is outside limits
    pictures.py       black and frozen cameras
    depth.py          holes; the scale of depth, compared over episodes
Of all episodes together, when they are done
    commands.py       what the recorded actions are, against what the embodiment says
    leads.py          commands that come after their states, or stand beside them
    changes.py        commands that are changes, against how far the states went
    across.py         swapped cameras, sizes, duplicates
    calibration.py    the end-effector, projected into the pictures
    datasets.py       several datasets against each other: units, columns, colours, turns; episodes: colours, turns
    idle.py           starts at which nothing moves for longer than a chunk
    ranges.py         quantiles against extremes
"""
