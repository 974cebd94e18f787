"""The UNet, and the backends that run it: eager, inductor, OpenVINO."""
