"""Raw recordings -> what they hold, and a starter embodiment file with what the numbers say about each slot.

inspect.py       `xwam-ft inspect`
evidence.py      what names, numbers and pictures say
grouping.py      columns -> limbs
known_robots.py  shipped embodiments that fit
timing.py        how far apart pictures and actions are
starter.py       the file that is proposed
"""

from xwam_ft.verb import callable_room

callable_room(__name__)
