"""The stop words of LAMBADA's filter: words that hardly ever end a passage, although they often go on with it.

The GPT-2 paper (section 3.3) adds "a stop-word filter as an approximation" to the constraint that the word is the last of its
sentence, and names no list. These are English function words: articles, pronouns, prepositions, conjunctions, auxiliary verbs and
the commonest adverbs.
"""

STOP_WORDS = tuple(
    """
    a about above after again against all am an and any are as at be because been before being below between both but by can
    could did do does doing down during each few for from further had has have having he her here hers herself him himself his
    how i if in into is it its itself just me might more most must my myself no nor not now of off on once only or other our
    ours ourselves out over own same shall she should so some such than that the their theirs them themselves then there these
    they this those through to too under until up very was we were what when where which while who whom whose why will with
    would you your yours yourself yourselves
    """.split()
)
