"""Full names in a text, where the text itself says that a name follows.

No list of names can tell 高兴 the word from a person, so a name counts only after words that
announce one (我叫, 姓名：, 咨询师：, "my name is", before credentials such as LMFT), when it begins
with a common surname, holds no character that names do not hold, and ends at a boundary.
"""

import re

from empathy_jax.corpus.rules.contacts import Span

_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林罗郑梁谢宋唐许韩邓冯曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢"
    "姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤温康"
    "施文牛樊葛邢安齐易乔伍庞颜倪庄聂章鲁岳翟殷詹申欧耿关兰焦俞左柳甘祝包宁尚符舒阮柯纪梅童凌毕单季裴霍涂"
    "成苗谷盛曲翁冉骆蓝路游辛靳欧管柴蒙鲍华喻祁蒲房滕屈饶解牟艾尤阳时穆农司卓古吉缪简车项连芦麦褚娄窦戚岑"
    "景党宫费卜冷晏席卫米柏宗瞿桂全佟应臧闵苟邬边卞姬师和仇栾隋商刁沙荣巫寇桑郎甄丛仲虞敖巩明佘池查麻苑迟邝"
)
_COMPOUND = "欧阳|上官|司马|诸葛|司徒|东方|慕容|皇甫|尉迟|公孙|令狐|夏侯|长孙|宇文|端木|南宫"
# Surnames that are everyday words as well: not enough where only a title announces the name.
_ORDINARY = (
    "于任万方白金石安向文易成时应解和明全师关单曾何马连路管"
    "包高常严钱温康史左华项农司古简车查冷麻池边商"
)
# Characters that hardly ever stand in a given name.
_NOT_GIVEN = (
    "的了着过不没是在有和与也都就还又很太我你您他她它们这那哪谁什么怎吗呢吧啊呀哦说话吃喝睡打骂去来到给把被"
    "让叫做想要能会可以该个些点次只但而且因为所如果或师生医老主任长员妈爸爷奶姐哥弟妹叔姨婆公爹娘先后前上下里"
    "嘴口手脚头眼疼病药钱车饭水课班校问题回停别死"
)
_GIVEN = rf"[^\W\da-zA-Z_{_NOT_GIVEN}]"
_NAME = rf"(?P<name>(?:{_COMPOUND}){_GIVEN}{{1,2}}|[{_SURNAMES}]{_GIVEN}{{1,2}})"
_END = r"(?=[，。,.；;！!？?、\s（(）)“”\"：:]|$|今年|同学|女士|先生)"
_TITLE = "咨询师|治疗师|督导师?|医生|大夫|老师|教授|班主任|辅导员|主任"
_KIN = (
    "老公|老婆|男友|女友|男朋友|女朋友|前男友|前女友|前任|前夫|前妻|女儿|儿子|宝贝|孩子|同学|同事|"
    "领导|老板|"
    "爸爸|妈妈|弟弟|妹妹|哥哥|姐姐|朋友|闺蜜|室友|同桌|学生|患者"
)
_ANNOUNCED = re.compile(
    rf"(?:我(?:的(?:名字|真名|本名|全名|大名))?(?:叫做?)|(?<!它的)(?:真名|本名|全名|名字)(?:叫做?|"
    rf"是|[:：])|名叫|姓名(?:是|为|叫|[:：])|真实姓名|(?:收件|联系|寄件|收货)人(?:是|[:：])?|"
    rf"姓(?P<surname>.)，[他她]?叫(?=(?P=surname))|"
    rf"(?:{_TITLE}|{_KIN})(?:的?名字)?叫做?|(?:{_TITLE}|助理)[:：])\s?{_NAME}{_END}"
)
_TITLED = re.compile(
    rf"(?:{_TITLE})是?((?:{_COMPOUND}){_GIVEN}{{1,2}}|(?![{_ORDINARY}])[{_SURNAMES}]{_GIVEN}{{2}})"
    r"(?=[，。,.；;！!（(]|$)"
)
_PERSON = r"([A-Z][a-z]{1,20}(?: [A-Z]\.)?(?: [A-Z][A-Za-z'\-]{1,20}){1,2})"
_CREDENTIALS = r"(?:L[A-Z]{2,4}|NCC|Ph\.?D|Psy\.?D|M\.?D|Ed\.?D|MFT|MSW|CADC|RN|DBH)\b"
_ENGLISH = re.compile(
    rf"\b[Mm]y (?:full |real )?name is {_PERSON}|\b(?:Sincerely|Regards|Warmly),?\s(?:Dr\. )?{_PERSON}"
    rf"|\b(?:[Mm]y|[Hh]is|[Hh]er) (?:full name|therapist|doctor|psychiatrist|counselor|teacher|"
    rf"boss)(?: is)?,? (?:Dr\. )?{_PERSON}"
    rf"|\b{_PERSON}, ?{_CREDENTIALS}"
)
_ANNOUNCEMENTS = ("叫", "姓名", "名字", "真名", "本名", "全名", "件人", "系人", "货人")
_TITLES = (*tuple(_TITLE.replace("督导师?", "督导").split("|")), "助理")


def spans(text: str) -> list[Span]:
    """Where full names stand that the text announces as names, in order."""
    found: set[Span] = set()
    announced = any(word in text for word in _ANNOUNCEMENTS)
    titled = any(word in text for word in _TITLES)
    if announced or titled:
        found.update(match.span("name") for match in _ANNOUNCED.finditer(text))
    if titled:
        found.update(match.span(1) for match in _TITLED.finditer(text))
    if "name is" in text or ", " in text or "Dr. " in text:
        found.update(match.span(match.lastindex) for match in _ENGLISH.finditer(text))
    return _apart(sorted(found))


def _apart(ordered: list[Span]) -> list[Span]:
    """Spans that do not overlap: of two that do, the first."""
    kept: list[Span] = []
    for span in ordered:
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept
