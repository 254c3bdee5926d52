"""What the words of the lists mean, for the list of keys."""

from __future__ import annotations

from scanner.records import Examination, Ground
from scanner.store.grounds import grounds_label

WORDS = {
    grounds_label([Ground.TRAINED_ON]): (
        "A claim about training: by the models' losses, the checkpoint was trained on a reference, or on "
        "pictures of a corpus"
    ),
    grounds_label([Ground.GIVES_BACK]): (
        "A claim about what anybody can generate now: an extracted image matches a reference"
    ),
    "both": "The two claims together",
    "Similar": "The similarity of the nearest reference to an extracted image",
    "q value": "The share of false ones to expect; of the matches, or by training alone of the memberships",
    "Flags": "References with a flag, and corpora as a whole: each can be decided on",
    Examination.SCREENED.label: "The losses were examined, and no image was generated",
    Examination.BOTH.label: "The losses were examined, and images were generated and compared",
    Examination.SAMPLED.label: "Images were generated and compared, and the losses were not examined",
}
