"""Names of the 3D encoders, apart from what builds them: importing torch takes seconds."""

VIDEO_ENCODERS = ("r3d_18", "mc3_18", "r2plus1d_18")
"""torchvision's video ResNets, which ``encoders.clip`` builds."""
