"""The grid of ablations.py: questions, and the cells that answer them."""

from __future__ import annotations

from typing import Literal, NamedTuple

CROP = "crop: true"
COLOUR = "brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.02"
STRENGTHS = (
    *("light=0.25", "light=0.5", "light=1.5"),
    *("colour=0.1", "colour=0.3"),
    *("camera=0.01", "camera=0.02", "camera=0.03"),
    *("turn=2", "turn=5", "things=4", "jpeg=60", "jpeg=20"),
    *("noise=0.03", "noise=0.1"),
    *("delay=2", "delay=4", "delay=8"),
)


class Cell(NamedTuple):
    """One recipe. `name` is its folder and file; a cell may answer several questions, under a label in each.

    `under`: in the place of the question's conditions.
    """

    name: str
    label: str
    sets: tuple[str, ...] = ()
    depth: bool = False  # trained on recordings with depth
    under: tuple[str, ...] | None = None


class Question(NamedTuple):
    """Its first cell is what the others are compared with; `perturb` asks every cell under each of these too.

    A condition is perturbations, `future` (acts with the imagined frames), `late=N` (commands until an answer is there)
    and what happens until then, with commas between.

    Args:
        against: what a row is compared with: the `first` row, the model `itself` with nothing made harder, or the first
            cell under an `alike` condition.
        imagines: pictures are judged as well.
        read_as: what its table says, once it is there: written by hand, so look at it again when rows come in.
    """

    asks: str
    cells: tuple[Cell, ...]
    steps: tuple[int, ...] = (4,)  # action denoising steps
    perturb: tuple[str, ...] = ()
    against: Literal["first", "itself", "alike"] = "first"
    imagines: bool = False
    read_as: str = ""

    def conditions(self, cell: Cell) -> tuple[str, ...]:
        return ("", *self.perturb) if cell.under is None else cell.under


def _base(label: str) -> Cell:
    return Cell("base", label)


def _augment(name: str, label: str, spec: str) -> Cell:
    return Cell(name, label, (f"data.augment={{{spec}}}",))


def _zoom(label: str) -> Cell:
    return _augment("augment_zoom", label, f"{CROP}, zoom: 0.1, {COLOUR}, copies: 8")


def _lora(rank: int, base: str = "tiny") -> Cell:
    name = f"lora_{rank}" + ("" if base == "tiny" else "_untrained")
    sets = ("model.train=lora", f"model.lora.rank={rank}", f"model.lora.alpha={rank}", "optim.lr_lora=3.0e-3")
    return Cell(name, f"LoRA of rank {rank} on {base}", (*sets, FROZEN, f"backbone.path={base}"))


def _first(recordings: int, others: str) -> Cell:
    rule = f'data.episode_weights=[{{source: "* episode {others}", weight: 0}}]'
    return Cell(f"demonstrations_{recordings}", f"the first {recordings}", (rule,))


def _with_future(*conditions: str) -> tuple[str, ...]:
    return ("future", *(f"future,{condition}" for condition in conditions))


def _late(way: str) -> tuple[str, ...]:
    return tuple(f"late={delay},{way}" for delay in DELAYS)


DELAYS = (2, 4, 8)  # commands; a chunk has 16
PREFIXES = "prefixes", ("noise.action_prefix={max: 8, probability: 0.5}",)
OPTIONAL = "future_optional", ("model.future=optional",)
LIGHT_AND_CAMERA = tuple(strength for strength in STRENGTHS if strength.startswith(("light", "camera")))
DEPTH = ("model.depth={branch: copy, blocks: 2, train: full}", "optim.lr_depth=1.0e-3")
FROZEN = "backbone.dtype=float32"
"""What computes and does not train, as what trains; on a CPU without bfloat16 that takes a tenth of the time too."""
UNTRAINED = "backbone.path=tiny-untrained"
PLAIN = _augment("augment_none", "none", "copies: 1")
QUESTIONS = {
    "noise": Question(
        "How should noise be drawn while training, and how many action steps are enough?",
        (
            _base("asynchronous, 10 % of clips with clean actions"),
            Cell("clean_50", "asynchronous, 50 % (X-WAM's)", ("noise.clean_action_probability=0.5",)),
            Cell("synchronous", "synchronous", ("noise.schedule=synchronous",)),
            Cell("decoupled", "decoupled", ("noise.schedule=decoupled",)),
            Cell("clean_0", "asynchronous, none with clean actions", ("noise.clean_action_probability=0",)),
            Cell("clean_25", "asynchronous, 25 %", ("noise.clean_action_probability=0.25",)),
        ),
        steps=(10, 4, 2, 1),
        read_as="Half of the clips with clean actions, X-WAM's own choice, acts worse than a tenth at every number of "
        "steps, and errs most on recordings that were not trained on. A tenth, a quarter, synchronous and decoupled "
        "noise are not told apart by one training each: the order that the paper found is not seen here. So recipes "
        "on Wan's weights take a tenth. Two action steps do as well as ten for all of these but synchronous noise.",
    ),
    "augment": Question(
        "Which augmentation helps, crops or colours, and how many copies?",
        (
            PLAIN,
            _augment("augment_crop", "crops alone, 8 copies", f"{CROP}, copies: 8"),
            _augment("augment_colour", "colours alone, 8 copies", f"{COLOUR}, copies: 8"),
            _augment("augment_4", "both, 4 copies", f"{CROP}, {COLOUR}, copies: 4"),
            _base("both, 8 copies"),
            _zoom("both, crops of other sizes"),
            _augment("augment_codec", "both, half of them compressed", f"{CROP}, {COLOUR}, codec: 0.5, copies: 8"),
        ),
    ),
    "video": Question(
        "Does learning video help actions?",
        (_base("video loss 0.5"), Cell("no_video", "no video loss", ("loss.video=0",))),
        read_as="Not to be seen here: with and without it the policies act alike within what 50 episodes tell, and err "
        "alike on recordings that were not trained on. What the video loss buys is the imagined future.",
    ),
    "depth": Question(
        "Does a depth branch help actions?",
        (
            _base("no depth"),
            Cell("depth_copy", "a branch of two blocks of its own", DEPTH, depth=True),
        ),
    ),
    "adapters": Question(
        "How much of the network should learn, and is the video prior worth it?",
        (
            _base("every weight on tiny"),
            _lora(64),
            _lora(16),
            _lora(4),
            Cell("heads", "heads alone on tiny", ("model.train=heads", FROZEN)),
            Cell("full_untrained", "every weight on tiny-untrained", (UNTRAINED,)),
            _lora(64, "tiny-untrained"),
            _lora(16, "tiny-untrained"),
            Cell("heads_untrained", "heads alone on tiny-untrained", ("model.train=heads", FROZEN, UNTRAINED)),
        ),
        read_as="LoRA of rank 64 acts as well as every weight, and of rank 16 little more than half as well: look "
        "at the rank first where a policy learns too little. Heads alone hardly act. The video prior is "
        "worth it where every weight learns: the network that had learned video before, though never this "
        "task, acts more than twice as well as the one that had not, the interval far from 0. At rank 16 it "
        "shows in the error on recordings alone, not in success. Ranks belong to this small network, 192 "
        "wide; how it is at 5B, 3072 wide, was not asked.",
    ),
    "demonstrations": Question(
        "How many demonstrations, at equal clips?",
        (_base("all 40"), _first(20, "[23][0-9]"), _first(10, "[1-3][0-9]")),
        read_as="With 20,000 clips shown, 10 demonstrations act as well as 40, within what 50 episodes tell: at this "
        "budget it is training that lacks, not recordings. Whether 40 pay with more training was not asked.",
    ),
    "future": Question(
        "Can it act without imagining, and what does that cost?",
        (
            _base("joint"),
            Cell(OPTIONAL[0], "optional, the future left out", OPTIONAL[1]),
            Cell(OPTIONAL[0], "optional, acting with it", OPTIONAL[1], under=_with_future(*LIGHT_AND_CAMERA)),
        ),
        perturb=LIGHT_AND_CAMERA,
        against="alike",
        imagines=True,
    ),
    "chunking": Question(
        "When answers come late, what should a robot do until they are there?",
        (
            _base("trained without prefixes, waits")._replace(under=("", *_late("hold"))),
            Cell(PREFIXES[0], "with prefixes, waits", PREFIXES[1], under=("", *_late("hold"))),
            Cell(PREFIXES[0], "with prefixes, switches chunks", PREFIXES[1], under=_late("switch")),
            Cell(PREFIXES[0], "with prefixes, goes on from one", PREFIXES[1], under=_late("prefix")),
        ),
    ),
    "robustness": Question(
        "What does a finished bundle bear that it was not trained on?",
        (
            _base("trained with augmentation"),
            PLAIN._replace(label="trained without"),
            _zoom("trained with crops of other sizes too"),
        ),
        perturb=STRENGTHS,
        against="itself",
    ),
}
