"""A shard set, a run or a bundle -> a page in the browser on which people watch what is known of it.

view.py        `xwam-ft view`: what is shown, where it is served, when it ends
site.py        what the page may ask for: an address -> an answer
server.py      HTTP on this machine alone: parts of videos, no strangers
episodes.py    a shard set's episodes: numbers in units, videos, pictures, depth, points, findings
runs.py        a run's curves and looks; folders that `imagine` and `evaluate` wrote
imagining.py   a clip imagined when the page asks for it
page/          the page itself: plain HTML, CSS and JavaScript, which fetch nothing from elsewhere
"""

from xwam_ft.verb import callable_room

callable_room(__name__)
