"""What picture was trained on? It stands in the gradient of a first dense layer.

For one picture x, the gradient of row i of the layer is d_i x, and that of its bias d_i. So the
quotient is x, for every row that x activates (J. Geiping et al., "Inverting Gradients", NeurIPS
2020, proposition 3.1; L. Phong et al., 2017). In a sum of several updates a row still gives the
picture away if it was activated by that one alone.
"""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

NDArray = np.ndarray[Any, np.dtype[Any]]

SIDE = 28


def candidates(weights: NDArray, biases: NDArray) -> NDArray:
    """The pictures that an update of a first dense layer tells of.

    One for each row, and the least-squares solution for all rows together, which is the best guess
    if there is one picture and white noise.

    Parameters
    ----------
    weights : ndarray, shape (rows, pixels)
        What the update changes the layer's weights by.
    biases : ndarray, shape (rows,)

    Returns
    -------
    ndarray, shape (n, pixels)
        In [0, 1]; empty if no bias changes.
    """
    told = biases != 0
    if not told.any():
        return np.empty((0, weights.shape[1]))
    weights, biases = weights[told].astype(np.float64), biases[told].astype(np.float64)
    together = biases @ weights / (biases @ biases)
    return np.clip([*(weights / biases[:, None]), together], 0, 1)


def similarity(pictures: NDArray, picture: NDArray) -> NDArray:
    """SSIM of each of `pictures` with `picture`: 1 for the same, about 0 for noise.

    Source: Z. Wang et al., "Image quality assessment: from error visibility to structural
    similarity", IEEE Transactions on Image Processing 13(4), 2004, equation 13, with its constants
    and its Gaussian window of standard deviation 1.5.

    Parameters
    ----------
    pictures : ndarray, shape (n, 784)
        In [0, 1].
    picture : ndarray, shape (784,)

    Returns
    -------
    ndarray, shape (n,)
    """
    a, b = pictures.reshape(-1, SIDE, SIDE), picture.reshape(1, SIDE, SIDE)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return np.asarray((luminance * structure).mean(axis=(1, 2)))


def _blur(pictures: NDArray) -> NDArray:
    blurred: NDArray = gaussian_filter(pictures, (0, 1.5, 1.5), truncate=3.5)
    return blurred


def best_similarity(weights: NDArray, biases: NDArray, picture: NDArray) -> float:
    """That of the candidate that is most like the picture.

    An attacker does not know which one that is: this is what it can have at best.
    """
    found = candidates(weights, biases)
    return float(similarity(found, picture).max()) if len(found) else 0.0
