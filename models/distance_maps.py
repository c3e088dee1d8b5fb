"""How far each pixel is from a defect's outline; computed where frames are loaded."""

import cv2
import numpy as np
from numpy.typing import NDArray


def signed_distances(mask: NDArray[np.uint8], reach_px: float) -> NDArray[np.float16]:
    """Return the signed distance to each class's outline, as shares of a reach.

    Kervadec et al. (arXiv 1812.07032, sec. 2, phi_G) as their published code has it: outside, the
    distance to the nearest labelled pixel; inside, minus the distance to the nearest unlabelled
    one, less one pixel, so that the outline itself is 0.  It deviates in cutting distances off at
    the reach: a corner of a 5-megapixel frame would outweigh every outline, and a crop does not
    know what lies beyond it.  A class without a labelled pixel is that far away everywhere.

    Args:
        mask: (H, W, K), 0 or 1.
        reach_px: Where distances are cut off.

    Returns:
        (K, H, W), -1 to 1.
    """
    maps = np.ones((mask.shape[2], *mask.shape[:2]), np.float16)
    for index in range(mask.shape[2]):
        labelled = np.ascontiguousarray(mask[:, :, index] > 0).astype(np.uint8)
        if not labelled.any():
            continue
        outside = cv2.distanceTransform(1 - labelled, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # With an unlabelled pixel there is an inside to measure; without one all is inside.
        inside = (
            np.full(labelled.shape, reach_px + 1, np.float32)
            if labelled.all()
            else cv2.distanceTransform(labelled, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        )
        signed = np.where(labelled > 0, 1 - inside, outside)
        maps[index] = np.clip(signed / reach_px, -1, 1)
    return maps
