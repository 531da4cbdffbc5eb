"""Progress lines and pictures from arrays and summaries; neither Ray nor PyTorch."""
