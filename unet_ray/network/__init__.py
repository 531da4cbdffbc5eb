"""The U-Net, its loss, its training step and its model file: PyTorch without process groups."""
