"""What people say of pictures, and how well each rule set agrees with them.

``vsr``: captions of photos; ``sources``: verdicts on generated pictures; ``generated``: the rule sets beside them;
``sectors``: the rule set fitted to people; ``abstain``: verdicts near a border; ``systems``: published systems scored;
``kit`` and ``annotators``: a blind questionnaire, and its answers.
"""

from ..agreement import AGREEMENT, agreement
from .vsr import VSR_PHRASES, human_agreement, judge_like_people, read_vsr

__all__ = ["AGREEMENT", "VSR_PHRASES", "agreement", "human_agreement", "judge_like_people", "read_vsr"]
