"""What a platform or an author's habit adds to a text: labels, masks, sign-offs, repetition."""

import re

from empathy_jax.corpus.rules import contacts, sentences

_CLIENT = "求助者|来访者|咨客|提问者|题主|求助人|用户|患者|client|user|seeker|human|patient"
_COUNSELLOR = (
    "支持者|(?:心理)?咨询师|倾听者|回答者|答主|助人者|心理医生|"
    "assistant|counsell?or|supporter|therapist"
)
_OWN = {
    "question": re.compile(f"(?:{_CLIENT})", re.I),
    "answer": re.compile(f"(?:{_COUNSELLOR})", re.I),
}
_LABEL = re.compile(
    rf"(?:(?<=[。！？!?…~～”」）)：:\n*])|^)[ \t]?[\[【(（]?(?P<role>{_CLIENT}|{_COUNSELLOR})"
    r"(?:[\]】)）] ?[:：]?| ?[:：]) ?",
    re.IGNORECASE,
)
_LABEL_MARKS = (
    "者：",
    "者:",
    "者]",
    "者】",
    "者）",
    "者)",
    "师：",
    "师:",
    "师]",
    "师】",
    "客：",
    "客:",
    "主：",
    "主:",
    *tuple(
        f"{end}{mark}"
        for end in ("户", "人", "患者", "生", "t", "r", "n", "T", "R", "N")
        for mark in ("：", ":", "]", "】")
    ),
)
_CLOSING_BRACKET = re.compile(r"[)）]|(?=\n)")
_LINE_END = re.compile("\n")

# [捂脸哭] stands for an emoji of WeChat or Weibo, [图片] for what the dump does not have.
_EMOJI_NAMES = (
    "微笑|撇嘴|色|发呆|得意|流泪|害羞|闭嘴|睡|大哭|尴尬|发怒|调皮|呲牙|惊讶|难过|囧|抓狂|吐|偷笑|"
    "愉快|白眼|傲慢|困|惊恐|流汗|憨笑|"
    "悠闲|奋斗|咒骂|疑问|嘘|晕|衰|骷髅|敲打|再见|擦汗|抠鼻|鼓掌|坏笑|左哼哼|右哼哼|哈欠|鄙视|委屈|"
    "快哭了|阴险|亲亲|可怜|笑脸|生病|脸红|"
    "破涕为笑|恐惧|失望|无语|嘿哈|捂脸哭?|奸笑|机智|皱眉|耶|吃瓜|加油|汗|天啊|Emm|社会社会|旺柴|"
    "好的|打脸|哇|翻白眼|666|让我看看|叹气|"
    "苦涩|裂开|嘴唇|爱心|心碎|拥抱|抱抱|强|弱|握手|胜利|抱拳|勾引|拳头|OK|合十|啤酒|咖啡|蛋糕|玫瑰|"
    "凋谢|菜刀|炸弹|便便|月亮|太阳|庆祝|"
    "礼物|福|烟花|爆竹|猪头|跳跳|发抖|转圈|doge|泪|笑cry|允悲|二哈|心|哈哈|嘻嘻|怒|鲜花|赞|蜡烛|"
    "比心|笑哭"
)
_PICTURE = re.compile(
    rf"[\[［](?:{_EMOJI_NAMES}|图)[\]］]"
    r"|[\[［【<＜](?:图片|表情|动画表情|语音|视频|文件|红包|位置|image|photo|sticker|emoji)[\]］】>＞]",
    re.IGNORECASE,
)
# Asterisks after the end of a sentence are where a paragraph ended; elsewhere they mask a word.
_PARAGRAPH_STARS = re.compile(r"(?:(?<=[。！？!?：:…～~”）)\n])|^)[*＊]{2,}[ \t]?")
_EMPHASIS = re.compile(r"\*\*(?=[\w“《【(（])([^*\n。！？，]{1,60}(?<=[\w”》】)）:：]))\*\*")
_MASK = re.compile(
    r"(?<=[\u4e00-\u9fff，：“])(?:[*＊]{2,}|[×✕╳]{2,}|[□■]{2,}|[○●]{2,})|(?:[*＊]{2,}|[×✕╳]{2,}|"
    r"[□■]{2,})(?=[\u4e00-\u9fff])"
)
_MENTION = re.compile(r"(?:(?<=[。！？!?\n])|^)[@＠](?=[\u4e00-\u9fff])")
_REPLACED = re.compile(r"(?<=其)(?:TA|ta)(?=们?[^A-Za-z])|(?:TA|ta)(?=人[，。的]?)")

_LONGEST_SIGN_OFF = 90  # characters
_SIGN_OFF = re.compile(
    r"^[\s—\-~～,，]*(?:"
    r"(?:无论[^，。]{0,6}，)?世界和我们?(?:都|一起|会|一直|永远)*(?:爱|陪|支持)?着?(?:你|"
    r"您)[^。！？]{0,8}"
    r"|(?:以上)[^。！？]{0,14}(?:仅?供(?:你|您|题主)?参考)[^。！？]{0,16}"
    r"|(?:望|希望|期待|欢迎|求|请)?(?:被)?(?:您|你)?(?:的)?采纳(?:[，,]谢谢)?"
    r"|(?:本文|文章|图片|内容)(?:来源|来自|转载|由)[^。！？]{0,40}|(?:图|文)[/／]网络?|(?:版权|"
    r"著作权)归[^。！？]{0,30}"
    r"|(?:未经[^，。]{0,8}(?:授权|许可|允许)[，,]?)(?:禁止|不得|请勿|严禁)[^。！？]{0,16}"
    r"|(?:发自|来自)(?:我的)?[ ]?(?:iPhone|iPad|Android|安卓|手机|华为|小米)[^。！？]{0,16}|"
    r"sent from my [a-z ]{2,20}"
    r"|(?:关键词|标签)[:：][^。！？]{0,60}|(?:编辑|责编|审核|排版)[:：][^。！？]{0,20}"
    r")[。！？!?~～\s]*$",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(
    r"(?:\n|(?<=[。！？!?]))\s?(?:——|--|—)\s?[^\n。，]{0,20}(?:咨询师|治疗师|答主|倾听者|心理师|"
    r"督导师?)[^\n。，]{0,10}\s*$"
    r"|(?:(?<=[.!?\n])\s?|^)(?:Be (?:well|wise)|Best(?: wishes| regards)?|(?:Kind|"
    r"Warm(?:est)?) regards|Sincerely|Take care)?[,.!]?\s?"
    r"(?:Dr\. )?[A-Z][a-z]{1,20}(?: [A-Z]\.)?(?: [A-Z][A-Za-z'\-]{1,20}){1,2}, ?(?:(?:L[A-Z]{2,4}|"
    r"NCC|Ph\.?D|Psy\.?D|MFT|MSW|DBH|MA|MS)[.,]? ?){1,5}\s*$"
)
_SIGN_OFF_WORDS = (
    "世界和我",
    "以上",
    "采纳",
    "来源",
    "来自",
    "图/网",
    "文/",
    "归",
    "未经",
    "发自",
    "ent from",
    "关键词",
    "标签",
    "编辑",
    "责编",
    "审核",
    "排版",
    "转载",
)

_RUN = re.compile(r"([^\w\s]|[\u3400-\u9fff哈啊呜])\1{6,}")
_LATIN_RUN = re.compile(r"([A-Za-z])\1{9,}")


def boilerplate(text: str) -> tuple[str, int]:
    """Without sentences that every answer of a platform carries, and signatures at the end."""
    text, signatures = _SIGNATURE.subn("", text)
    if not any(word in text for word in _SIGN_OFF_WORDS):
        return text, signatures
    spans = [
        (start, end)
        for start, end in sentences.spans(text)
        if end - start < _LONGEST_SIGN_OFF and _SIGN_OFF.match(text[start:end])
    ]
    text, sign_offs = contacts.cut(text, spans, "")
    return text, signatures + sign_offs


def speaker_label(text: str, part: str) -> tuple[str, int]:
    """The turns of the one who writes: labels go, and with the other's label the other's turn.

    A label counts at the start of the text, of a line or of a sentence. What stands before the
    first label belongs to the writer. The other's turn ends at the next label or line, or, when it
    stands in brackets, with the bracket: messages that a reader joins begin on a line of their own.

    Args:
      part: "question" or "answer", which tells who the writer is.
    """
    if not any(mark in text for mark in _LABEL_MARKS):
        return text, 0
    labels = list(_LABEL.finditer(text))
    if not labels:
        return text, 0
    pieces = [text[: labels[0].start()]]
    ends = [label.start() for label in labels[1:]] + [len(text)]
    for label, end in zip(labels, ends, strict=True):
        start = label.end()
        if not _OWN[part].fullmatch(label["role"]):
            start = _end_of_turn(text, label, end)
        pieces.append(text[start:end])
    return "".join(pieces), len(labels)


def _end_of_turn(text: str, label: re.Match[str], end: int) -> int:
    """Where the turn of the other speaker ends, whose label this is."""
    bracketed = label[0].lstrip()[0] in "(（" and label[0].rstrip()[-1] in ":："
    closing = _CLOSING_BRACKET if bracketed else _LINE_END
    match = closing.search(text, label.end(), end)
    return match.end() if match and bracketed else match.start() if match else end


def platform_mask(text: str) -> tuple[str, int]:
    """Without names of pictures; masked words become XX; asterisks between sentences, line ends.

    SmileChat marks the ends of paragraphs with ** and ******, leaves the @ of a name that it took
    away, and writes TA人 for 他人.
    """
    count = 0
    if any(bracket in text for bracket in "[［【<＜"):
        text, count = _PICTURE.subn("", text)
    if not any(mark in text for mark in "*＊×✕╳□■○●@＠") and "TA" not in text and "ta" not in text:
        return text, count
    text, emphasis = _EMPHASIS.subn(r"\1", text)
    text, stars = _PARAGRAPH_STARS.subn("\n", text)
    text, masks = _MASK.subn("XX", text)
    text, mentions = _MENTION.subn("", text)
    text, replaced = _REPLACED.subn("他", text)
    return text, count + emphasis + stars + masks + mentions + replaced


def repeated_characters(text: str) -> tuple[str, int]:
    """Seven or more of one character in a row become three; digits and spaces stay."""
    text, marks = _RUN.subn(r"\1\1\1", text)
    text, letters = _LATIN_RUN.subn(r"\1\1\1", text)
    return text, marks + letters
