"""The UNet call and the backends that run it: eager, inductor, OpenVINO."""
