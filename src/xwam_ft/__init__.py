"""xwam-ft: fine-tune X-WAM on your own teleoperation recordings."""
