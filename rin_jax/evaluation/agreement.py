"""Whether class-conditional samples show the class that was asked for.

A support-vector classifier learns from real images and labels the samples; it shares nothing
with the generator but the data.
"""

import numpy as np

HELD_OUT = 0.2  # share of the real images on which the classifier itself is measured


def label_agreement(
    real_images: np.ndarray,
    real_labels: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
) -> dict[str, float]:
    """Shares of samples, and of held-out real images, that the classifier labels as given.

    Args:
      real_images: uint8 [R, H, W, C] with real_labels int [R].
      images: uint8 samples [B, H, W, C] that were asked for with labels int [B].
      seed: of the split of the real images.

    Returns:
      agreement: share of samples in 0..1; classifier_accuracy: share of held-out real images.
    """
    from sklearn import model_selection, svm

    def flat(x):
        return x.reshape(len(x), -1).astype(np.float32) / 255.0

    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        flat(real_images), real_labels, test_size=HELD_OUT, random_state=seed, stratify=real_labels
    )
    classifier = svm.SVC(C=10.0, gamma="scale").fit(train_x, train_y)
    return {
        "agreement": float(np.mean(classifier.predict(flat(images)) == labels)),
        "classifier_accuracy": float(classifier.score(test_x, test_y)),
    }
