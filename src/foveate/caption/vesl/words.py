"""Word lists of the noun-phrase recipe (arXiv 2410.02746, appendix on VESL; the lists as our golden has them)."""

from __future__ import annotations

# Words of adverts, hosts and files, which name nothing that an image shows.
GENERIC_WORDS = frozenset(
    """
    alibaba aliexpress amazon available background blog buy co com description diy download facebook free gif hd
    ideas illustration illustrations image images img instagram jpg online org original page pdf photo photography
    photos picclick picture pictures png porn premium resolution royalty sale sex shutterstock stock svg thumbnail
    tumblr tumgir twitter uk uploaded vector vectors video videos wallpaper wallpapers wholesale www xxx youtube
    """.split()
)

# English words that make no phrase by themselves.
STOP_WORDS = frozenset(
    """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves what which who whom this that these those am is are was were be
    been being have has had having do does did doing a an the and but if or because as until while of at by for with
    about against between into through during before after above below to from up down in out on off over under
    again further then once here there when where why how all any both each few more most other some such no nor not
    only own same so than too very s t can will just don should now
    """.split()
)
