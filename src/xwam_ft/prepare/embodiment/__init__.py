"""An embodiment file, and an episode read through it: slots, cameras, units.

schema.py       the file
slots.py        its slots -> columns and the contract's slots; cameras.py its cameras
order.py        names of columns against the order in which they are read
naming.py       what the robot calls what it observes
reading.py      one recording's state and command as the slots name them
joint_units.py  ticks, degrees and per cent -> radians
pose_forms.py   rotations as recordings write them -> quaternions
"""
