"""What others have published for the ISBI 2012 challenge, to stand beside our scores."""

from typing import Any

NOTE = (
    "The labels of the challenge's test stack were never published, so published scores are of other sections than "
    "these and comparable in kind only."
)

PUBLISHED: dict[str, Any] = {
    "note": NOTE,
    "tables": [
        {
            "name": "ISBI 2012 challenge, test stack, ranking of 6 March 2015",
            "source": (
                "Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, table 1, as two independent transcriptions agree; "
                "whether its Rand error counts pairs of a pixel with itself (rand_error) or not (rand_error_choose_2) "
                "is not documented"
            ),
            "rows": [
                {
                    "name": "human, second observer",
                    "warping_error": 0.000005,
                    "rand_error": 0.0021,
                    "pixel_error": 0.0010,
                },
                {"name": "U-Net", "warping_error": 0.000353, "rand_error": 0.0382, "pixel_error": 0.0611},
                {"name": "DIVE-SCI", "warping_error": 0.000355, "rand_error": 0.0305, "pixel_error": 0.0584},
                {"name": "IDSIA", "warping_error": 0.000420, "rand_error": 0.0504, "pixel_error": 0.0613},
                {"name": "DIVE", "warping_error": 0.000430, "rand_error": 0.0545, "pixel_error": 0.0582},
                {"name": "IDSIA-SCI", "warping_error": 0.000653, "rand_error": 0.0189, "pixel_error": 0.1027},
            ],
        },
        {
            "name": "ISBI 2012 challenge, test stack, later leaderboard",
            "source": (
                "README of the authors of: Regularize Network Skip Connections by Gating Mechanisms for Electron "
                "Microscopy Image Segmentation, ICME 2019; the leaderboard itself was not at hand"
            ),
            "rows": [
                {"name": "SFCNNs", "v_rand": 0.98680, "v_info": 0.99144},
                {"name": "ADDN", "v_rand": 0.98317, "v_info": 0.99088},
                {"name": "F-CLmser-S", "v_rand": 0.98223, "v_info": 0.98919},
                {"name": "PolyMtl", "v_rand": 0.98058, "v_info": 0.98816},
                {"name": "M2FCN", "v_rand": 0.97805, "v_info": 0.98919},
                {"name": "FusionNet", "v_rand": 0.97804, "v_info": 0.98893},
                {"name": "CUMedVision", "v_rand": 0.97682, "v_info": 0.98865},
                {"name": "U-Net", "v_rand": 0.97276, "v_info": 0.98662},
            ],
        },
    ],
}
"""Scores by our names, as `unet_ray.numerics.stack_scores.StackScores` explains them; plain data for JSON."""
