"""An episode of a shard set as a Rerun recording: pictures, depth, points, end-effector paths, series of numbers.

Entities
    world/cameras/<camera>          a calibrated camera: pose, pinhole; rgb and depth below it
    cameras/<camera>                one without calibration
    world/points/<camera>           metric depth of a calibrated camera as points in the base frame
    world/<slot>                    a pose slot: its path and, in another colour, that of its commands
    world/<slot>/now                where it is at the frame's time
    state/<slot>, command/<slot>    the numbers
Timelines: `frame`, and `time` in seconds by the contract's frame rate.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.conventions import command_slices, state_slices
from xwam_ft.depth_code import colour, to_metres
from xwam_ft.errors import require
from xwam_ft.evaluate.scene import camera_pose, left_out, stored_cloud, stored_intrinsics
from xwam_ft.files import atomic_path

if TYPE_CHECKING:
    from xwam_ft.contract import Camera, Contract
    from xwam_ft.shards import Segment, ShardSet

STATE, COMMAND = (59, 111, 181), (209, 96, 43)
QUALITY = 85  # JPEG
POINTS_STRIDE = 2  # every second pixel of every second row


def show_episode(shards: ShardSet, episode: int, save: Path | None) -> None:
    """Open an episode in Rerun's viewer, or write it to a .rrd file.

    Raises:
        UserError: rerun is not installed, or there is no such episode.
    """
    try:
        import rerun as rr
    except ImportError:
        raise require("rerun-sdk", "viz", "xwam-ft view --rerun") from None
    shards.episode(episode)
    recording = rr.RecordingStream("xwam-ft", recording_id=f"{shards.contract.embodiment} episode {episode}")
    if save is None:
        recording.spawn()
        log_episode(shards, episode, recording)
        return
    with atomic_path(save) as temporary:
        recording.save(temporary)
        log_episode(shards, episode, recording)
        recording.flush()
        recording.disconnect()


def log_episode(shards: ShardSet, episode: int, recording: Any) -> int:
    """Log an episode into a `rerun.RecordingStream`, each frame once where segments overlap; returns its frames."""
    import rerun as rr

    contract = shards.contract
    recording.log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    states: list[np.ndarray] = []
    commands: list[np.ndarray] = []
    done = 0
    for entry in shards.segments():
        if entry.episode != episode:
            continue
        segment = shards.read(entry)
        for row in range(max(0, done - segment.first_frame), segment.num_frames):
            _set_time(recording, segment.first_frame + row, contract.timing.fps)
            for view, camera in enumerate(contract.cameras):
                _log_view(recording, contract, camera, segment, view, row)
            states.append(segment.proprio[row])
            commands.append(segment.action[row])
        done = max(done, segment.first_frame + segment.num_frames)
    if states:
        _log_motion(recording, contract, np.stack(states), np.stack(commands))
    return len(states)


def _set_time(recording: Any, frame: int, fps: float) -> None:
    recording.set_time("frame", sequence=frame)
    recording.set_time("time", duration=frame / fps)


def _log_view(recording: Any, contract: Contract, camera: Camera, segment: Segment, view: int, row: int) -> None:
    import rerun as rr

    rgb = segment.rgb[view, row]
    size = rgb.shape[:2]
    calibrated = camera.name not in left_out(contract)
    place = f"world/cameras/{camera.name}" if calibrated else f"cameras/{camera.name}"
    if calibrated:
        fx, fy, cx, cy = stored_intrinsics(camera, size)
        pose = camera_pose(contract, camera, segment.proprio[row])
        recording.log(place, rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        pinhole = rr.Pinhole(focal_length=(fx, fy), principal_point=(cx, cy), width=size[1], height=size[0])
        recording.log(place, pinhole)
    recording.log(f"{place}/rgb", rr.Image(rgb).compress(jpeg_quality=QUALITY))
    if segment.depth is None:
        return
    codes = segment.depth[view, row]
    if contract.depth.kind != "metric":
        recording.log(f"{place}/depth", rr.Image(colour(codes)).compress(jpeg_quality=QUALITY))
        return
    metres = to_metres(codes, contract.depth_of(camera)).astype(np.float32)
    recording.log(f"{place}/depth", rr.DepthImage(np.nan_to_num(metres), meter=1.0))
    if calibrated:
        cloud = stored_cloud(contract, camera, rgb, codes, segment.proprio[row], POINTS_STRIDE)
        recording.log(f"world/points/{camera.name}", rr.Points3D(cloud.points, colors=cloud.colours, radii=0.002))


def _log_motion(recording: Any, contract: Contract, states: np.ndarray, commands: np.ndarray) -> None:
    import rerun as rr

    frames = np.arange(len(states))
    times = [rr.TimeColumn("frame", sequence=frames), rr.TimeColumn("time", duration=frames / contract.timing.fps)]
    told = command_slices(contract)
    for name, place in state_slices(contract).items():
        slot = contract.slot(name)
        if not slot.present:
            continue
        for what, table, at in (("state", states, place), ("command", commands, told.get(name))):
            if at is None:
                continue
            numbers = table[:, at]
            raw = what == "command" and slot.for_controller  # a controller's input: no place, and in units of its own
            if slot.kind == "pose" and not raw:
                colours = STATE if what == "state" else COMMAND
                path = rr.LineStrips3D([numbers[:, :3]], colors=[colours], radii=0.001)
                recording.log(f"world/{name}/{what}", path, static=True)
            names = slot.action_elements if raw else slot.elements
            lines = rr.SeriesLines(names=[f"{element} {what}" for element in names])
            recording.log(f"{what}/{name}", lines, static=True)
            recording.send_columns(f"{what}/{name}", indexes=times, columns=rr.Scalars.columns(scalars=numbers))
        if slot.kind == "pose":
            columns = rr.Points3D.columns(positions=states[:, place][:, :3], radii=np.full(len(states), 0.01))
            recording.send_columns(f"world/{name}/now", indexes=times, columns=columns)
