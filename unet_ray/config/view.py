"""Settings of the view job."""

from typing import Annotated

from pydantic import Field

from unet_ray.config.base import Config, Place, VoxelSize


class ViewConfig(Config):
    """Show a volume with its segmentation in a web browser, neuroglancer or napari; served to this machine alone until interrupted."""

    volume: Place | None = None
    """Raw volume: TIFF, local folder or glob of TIFF or PNG images, zarr, OME-Zarr; a path or URL."""
    segmentation: Place | None = None
    """Segmentation that the segment job wrote; a path or URL."""
    voxel_size_nm: VoxelSize | None = None
    """Voxel size z y x in nm; None: what the volume's file tells, else the segmentation."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    """Port on 127.0.0.1 to serve at; 0: any free one."""
    neuroglancer: Annotated[str, Field(pattern="^https?://[^/]+")] = "https://neuroglancer-demo.appspot.com"
    """Address of the neuroglancer that the link opens; no other web site may read what is served."""
