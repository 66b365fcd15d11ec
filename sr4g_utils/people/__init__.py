"""What people say of pictures, and how well each rule set agrees with them.

``vsr``: captions of photos; ``published``: verdicts on generated pictures; ``agreement``: rule sets and published
systems beside them; ``fitted_rule``: the rule set fitted to people; ``margins``: verdicts near a border; ``kit`` and
``answers``: a blind questionnaire, and its answers.
"""
