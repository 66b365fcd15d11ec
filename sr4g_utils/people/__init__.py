"""What people say of photos and generated images, and how well each rule set agrees with them (notebook 06).

``vsr``: captions of photos; ``published``: verdicts on generated images; ``agreement``: rule sets and published systems
beside them; ``fitted_rule``: the rule set fitted to people; ``margins``: verdicts near a border; ``results``
and ``figures``: notebook 06's tables and figures; ``kit`` and ``answers``: a blind questionnaire, and its answers.
"""
