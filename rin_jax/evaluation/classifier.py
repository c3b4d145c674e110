"""A small classifier of real images, for the labels that it gives samples and for its features.

One hidden layer on the pixels, trained by scikit-learn; it shares nothing with the generator but
the data. For images of few pixels.
"""

import numpy as np

HIDDEN = 64  # features
HELD_OUT = 0.2  # share of the real images on which the classifier itself is measured


class Classifier:
    """Learns from uint8 images [R, H, W, C] with labels int [R], several of each class.

    `accuracy` is the share of held-out real images, 0..1, that it labels as given.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int = 0):
        import threadpoolctl
        from sklearn import model_selection, neural_network

        train_x, test_x, train_y, test_y = model_selection.train_test_split(
            _flat(images), labels, test_size=HELD_OUT, random_state=seed, stratify=labels
        )
        self._network = neural_network.MLPClassifier(
            (HIDDEN,), alpha=1e-3, max_iter=400, random_state=seed
        )
        with threadpoolctl.threadpool_limits(1):  # ten times faster than threads that wait
            self._network.fit(train_x, train_y)
        self.accuracy = float(self._network.score(test_x, test_y))

    def agreement(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of images [B, H, W, C], 0..1, to which it gives the labels [B]."""
        return float(np.mean(self._network.predict(_flat(images)) == labels))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Activations of the hidden layer [B, HIDDEN], not negative."""
        hidden = _flat(images) @ self._network.coefs_[0] + self._network.intercepts_[0]
        return np.maximum(hidden, 0.0)


def _flat(images: np.ndarray) -> np.ndarray:
    """[B, H, W, C] of 0..255 as [B, pixels] of 0..1."""
    return images.reshape(len(images), -1).astype(np.float32) / 255.0
