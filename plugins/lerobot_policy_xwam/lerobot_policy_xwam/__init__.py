"""X-WAM bundles as a LeRobot policy: importing this registers the type `xwam`.

configuration_xwam.py   XwamConfig: which bundle, and how it is asked
modeling_xwam.py        XwamPolicy: select_action, predict_action_chunk, reset; loads and saves
processor_xwam.py       the steps before and after, which leave every number as the robot gives it
__main__.py             python -m lerobot_policy_xwam BUNDLE FOLDER: a folder for --policy.path
"""

from lerobot_policy_xwam.configuration_xwam import XwamConfig

__all__ = ["XwamConfig"]
