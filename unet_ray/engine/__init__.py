"""The four engines; the only package that imports Ray."""
