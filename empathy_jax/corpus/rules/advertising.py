"""Advertising and the harvesting of contacts, sentence by sentence.

A sentence solicits when it asks the reader to add, follow, pay, scan, book or leave an account. The
words alone prove nothing here: 不关注我 is about feelings, 淘宝 about shopping, 加我微信 mostly
part of a story. So patterns hold the imperative with its address (欢迎关注我, 有困惑可私信我), and
clauses whose subject is somebody else (他加我微信, 有人私信我) do not count.

A long answer that ends in one such sentence loses the sentence; a text that consists of them is
an advertisement.
"""

import re

from empathy_jax.corpus.rules import contacts, personal_data, sentences
from empathy_jax.corpus.rules.contacts import Span

MAX_SHARE = 1 / 3  # of a text; above it the text is an advertisement, not an answer with one inside

# One of these stands in every sentence that solicits: the fast way past all other sentences. Two
# patterns, because only one of literals alone is searched by its first characters (ten times faster).
_GATE = re.compile(
    "私信|私我|私聊|滴我|滴滴|戳我|关注|点赞|有用|二维码|扫码|扫描|识别|头像|主页|预约|下单|优惠|"
    "免费|名额|领取|领三次|报名|课程|公众号|公号|"
    "视频号|服务号|订阅号|专栏|星球|加我|加你|加他|加她|加个|加一下|加助理|加客服|加老师|加群|进群|"
    "加入|加的|加微|加薇|加威|加卫|加扣|加好友|"
    "群|裙|微信|微心|微星|微号|微:|微：|微 |薇|徽|维信|维心|维星|威信|威心|威星|威:|威：|威 |巍|葳|"
    "卫星|扣|蔻|抠|叩|企鹅|联系我|联系电话|联系方式|"
    "手机号|电话|邮箱|邮件|添加|链接|搜|店铺|套餐|半价|立减|打折|折扣|八折|九折|七折|六折|五折|"
    "对折|出售|代写|承接|转让|贷款|抵押|放款|日入|刷单|"
    "包治|包教|病除|不准不收|收费|占卜|塔罗|算命|姻缘|报价|咨询费|我的咨询|训练营|见效|会员|邀请码|"
    "下载|小红书|抖音|快手|喜马拉雅|拨打|请拨|首单|限时|原价|"
    "还送|包邮|元|送你|简介|个签|签名|置顶|后台|评论|把你的|拉你|找我|踢我|敲我|戳我|秒回|持证|"
    "报我|进店|到店|学生党|账号|帐号|绿|赞|留言|留下|留个|发一下|发个|多少"
)
_GATE_LATIN = re.compile("[A-Za-z@＠+＋Ａ-Ｚａ-ｚ０-９❤♥]")
_OTHERS = (
    r"(?:他们?|她们?|对方|有人|谁|别人|那人|前任|前男友|前女友|前夫|前妻|骗子|陌生人|网友|男友|"
    r"女友|男朋友|女朋友|男生|女生|老公|"
    r"老婆|妈妈?|爸爸?|同学|同事|领导|老板|朋友|客户|粉丝|室友|老师|咨询师|孩子)"
)
_STORY = re.compile(
    rf"{_OTHERS}|被|骚扰|威胁|拉黑|删了|删除|借钱|不敢|不知道|没回|小时候|报警|[我你]妈|[我你]爸|"
    rf"以前|当时|那天|后悔|骗"
)
_ACCOUNT = (
    r"(?:微信|[vw]x|[vw]信|[薇徽维威微v]\s?[信心芯星x❤♥]|qq|扣扣|企鹅|好友|群|q(?![a-z])|"
    r"扣(?![住除分押人钱子])|"
    r"[vw薇威微](?![a-z]|[\u4e00-\u9fff])|卫星|❤|♥)"
)
_START = (
    r"(?:^|[，,。！？!?；;：:、\s”」）)…~～]|朋友|的话|可以?|请|"
    r"欢迎|直接|随时|需要|有意者?|同学|想[^，。]{0,8}的|咨询|更多|求|内容|程|者|互)"
)
_CHANNELS = (
    r"(?:公众号|gzh|公号|视频号|服务号|订阅号|b站|抖音|快手|小红书|微博|知识星球|喜马拉雅|专栏)"
)
_INVITED = (
    r"(?:可以?|欢迎|请|随时|直接|记得|快来|需要|需求|资料|"
    r"想要?[^，。]{0,8}|困惑|问题|疑问|姐妹|朋友|伙伴|同学|^|[，,；;：:~\s])"
)

# Imperatives that solicit by themselves.
_IMPERATIVES = re.compile(
    "|".join(
        (
            # write to me privately
            rf"{_INVITED}(?:以|直接|随时|来|给|都可以?|在?后台|继续){{0,3}}(?:私信|私聊|"
            rf"(?<![隐自偷走])私|滴滴?|dd|戳(?=我[，,。！!~吧哦]))(?:给)?我"
            r"(?![^，。！!]{0,4}[说过了问约骂要让]|[的道发])",
            r"(?:可以?|欢迎|随时|请)(?:直接|随时)?私(?:信|聊)(?:[!！。~～哦咨,，]|$)",
            r"(?:私信|后台|评论区?)(?:回复|留言)[“\"「【‘]",
            # follow, like, scan
            r"(?:欢迎|记得|点赞|点个赞|收藏|顺手)[^。他她]{0,14}(?:关注我(?!们?的[情内感心])|"
            r"关注一下?[我，。！!]|(?:求|加个?)关注[哦吧呀，,。！!~])",
            r"(?:^|[，,；;\s]|可以?)(?:也)?(?:可以?)?(?:继续|多多?|请|"
            r"可以?)关注我(?:们)?(?:[，,。！!~～哦吧]|咨询|$)",
            r"关注我不迷路|关[注住]我的(?:账|帐|频)",
            r"(?:看|戳|点|进)(?:一?下)?我?的?(?:简介|个签|签名|置顶)|(?:^|[，,；;\s])(?:戳|点|进|"
            r"看)(?:我的?)?主页[，,。！!]",
            r"(?:后台|主页|简介)(?:里)?(?:有|问|找|联系|滴|留)(?:我|联系|微信|方式)|评论区?(?:里|"
            r"的)?(?:第一|置顶|首)条",
            r"(?:链接|资源)[^，。他她]{0,6}评论区|把你的(?:号|微信|qq|电话)[^，。]{0,4}发(?:给)?我|"
            r"我?拉你们?(?:进|入)[^，。]{0,5}群",
            r"(?:^|[，,；;\s]|朋友|宝子们?|姐妹们?|想[^，。]{0,6}的)(?:来|快)?(?:找|踢|敲|"
            r"戳)我(?:吧)?[，,][^。]{0,8}(?:秒回|在线|免费|加|扣|微|都在)",
            r"持证上岗[^。]{0,12}(?:小时|价|\d)|报我的?名字[^。]{0,16}(?:便宜|优惠|折)|进店有礼|"
            r"到店(?:有礼|立减)|学生党(?:价|打)",
            rf"(?:欢迎|请|可以|记得|或者?|继续|^|[，,；;])(?:大家|你|"
            rf"您)?(?:可以)?关注(?:一下)?(?:我们?的?)?(?:的?微信|官方|个人|"
            rf"[^，。他她]{{0,6}}(?=公众号|公号)){{0,3}}{_CHANNELS}",
            rf"我们?的(?:微信|个人)?{_CHANNELS}(?:[“\"「【《:：是叫,，]|https?)",
            rf"(?:^|[，,；;\s]|欢迎|可以)(?:微信|上)?(?:搜索?|搜一搜)(?:微信)?(?:{_CHANNELS}|店铺)",
            rf"{_CHANNELS}(?:上)?(?:搜索?[^，。他她]{{0,3}}[“\"「【]|号? ?:)",
            r"(?<!会)点(?:击|一下)?[“\"「]有用|点赞[、+]?收藏|(?:顺手|动动手)[^，。]{0,4}点?个?赞|"
            r"赞再走|一键三连",
            r"(?:^|[，,；;\s]|立即|可以?|请)(?:长按|扫描?|扫一扫|识别)[^，。他她]{0,6}(?:二维码|"
            r"下方码)",
            r"(?:^|[，,；;\s]|立即)扫码(?:加入|进群|购买|领取|下单|添加|关注|预约)",
            r"点(?:击|一?下)?我的?(?:头像|主页)|(?:进入|看|逛)我?的?主页(?:预约|下单|链接)|"
            r"链接(?:就?在|见)(?:我的?)?主页|主页的?链接",
            r"点击(?:下面|下方|这个|以下|此处|链接)(?:的)?(?:链接|下载|购买|报名|领取|加入|http|"
            r"www|\[url|\s)",
            r"(?:访问|点击|详见|戳)\s?(?:https?:|www\.)[!-~]*\s?[^。]{0,4}(?:购买|领取|报名|下单|"
            r"预约|咨询)",
            # groups and accounts
            r"(?:咨询|预约|报名|订购)(?:电话|热线|微信|qq|请拨)[:：]?\s?\[|(?:^|"
            r"[，,])找我[，,](?:扣|微|薇|[vq])\s?\[",
            r"(?:^|[，,；;\s的])(?:请|可以?|快来|直接)?加我(?:拉|送|领|发你|细聊|好友[，,。！!]|"
            r"进群|咨询)",
            r"(?:可以?|欢迎|一起|快来?|请)(?:加|进)(?:入)?(?:我们?的?)?(?:微信|qq|扣扣|互助|"
            r"学习)?群(?:[，,。！!:：]|$|\s?[\d\[])",
            r"(?:^|[，,])加入我们的",
            r"(?:你|您)的?(?:微信|手机号|电话|联系方式|qq)号?(?:是)?多少[？?]?[^。]{0,2}(?:我加|$)|"
            r"我(?:来|就|马上)?(?:挨个)?加你们?(?!油)",
            r"(?:^|[，,；;]|评论区|方便的话)(?:请|可以|都)?(?:留下|留个|发一?下|发个|说下)(?:(?:你|"
            r"您)的)?(?:联系方式|微信号?|手机号码?|电话|qq号?)(?:[呗吧]|[，,]我)",
            r"方便加(?:个|一下)?(?:微信|qq|好友)",
            # trades
            r"(?:^|[，,；;])(?:专业)?(?:出售|代写|承接(?:各|定制|业务)|低价转让|转让)|无抵押|"
            r"当天放款|日入[\d一二三四五六七八九]|兼职刷单[^，。]{0,8}(?:日|加)|包教包会|包治|"
            r"不准不收|算命改运|按小时收费|私聊我?报价|价格实惠|\d{1,3}天见效|[七三十]天见效",
            r"预约我的|报名我的|我的(?:咨询费|收费)是|接受我的咨询|我的(?:店铺|网店|淘宝店)(?:逛|"
            r"下单|看)|到我的店铺",
        )
    )
)
# An account in the imperative: 加我微信 at the start of a clause, not 他让我加他微信.
_ADD = re.compile(
    rf"{_START}(?:可以?|请|直接|以)?(?:您|你)?(?:加|\+|添加|联系)(?:一?下)?(?:我们?|他|她|助理|"
    rf"老师|客服)?的?(?:个人|助理|老师|客服)?{_ACCOUNT}"
    r"(?!里|上|聊|好友列表|[^，。]{0,3}[说了过])"
)
_ADD_OBJECT = re.compile(r"咨询|号|[:：]|免费|领|备注|私|[a-z0-9]{5}|\[")
# An account behind a disguise is there to be added.
_DISGUISED = re.compile(
    r"(?:(?<![a-z])[vw][ ❤♥\ufe0f]{0,3}(?:信|❤|♥|x(?:in)?)|[薇徽维威]\s?[信心芯星x❤♥]|微[x❤♥心星]|"
    r"绿泡泡|绿色软件|(?<![a-z])v(?=[:\s]{0,2}(?:\[|1[3-9]))|"
    r"weixin|wechat id|裙号?|[蔻抠叩]{2}|扣扣|企鹅号?|"
    r"[+加❤♥][❤♥\ufe0f:\s]{1,3}|(?<![a-z])[vq微薇威](?=:)|q群|"
    r"加我?[q扣])[号:\s是]{0,4}(?:\[(?:wechat|qq|phone)\])"
)
_TOKEN = re.compile(r"\[(?:wechat|qq|phone|email|url)\]")
_INVITATION = re.compile(
    r"加我|加群|进群|可加|添加|联系[我电微:\[]|预约|咨询|报名|免费|领取|一起|欢迎|有意|来撩|来找我|"
    r"想聊|聊的来|细聊|打我|拨打|发邮件|发到我的|"
    r"诚勿扰|一对一|在线|24小时|抱团|交友|兼职|下单|学员|同频|随时|微信同号|验证码|备注|收费"
    r"|session|discount|schedule|to book|appointment|follow me|reach m[ey]|call me|e?mail me|"
    r"text me|daily tips"
)
# An offer and a thing to buy in one sentence, outside anybody else's story.
_OFFER = re.compile(
    r"立减|首单|半价|(?<![极有期])限时(?![间候])|原价\s?\d|价值\s?\d|还送|送你[一1两]份?|免费(?:领|"
    r"送|发|试听|测|名额|通话)|[第首][一1]次免费|领取|领[三3]次|"
    r"[打享]?[一二三四五六七八九\d]折|名额有限|咨询名额|限时优惠|[领送抢]优惠券|价格优惠|包邮|"
    r"[每一](?:分钟|次|小时)[一二两三五十\d]+元|只要\s?\d+\s?元|看姻缘"
)
_GOODS = re.compile(
    r"下单|购买|预约|报名|扫码|下载|点击|课程?|训练营|套餐|教程|陪聊|陪伴|测评|服务|店铺|工作室|"
    r"本机构|名师|占卜|塔罗|一对一|"
    r"资料|电子书|链接|https?:|www\.|学员|私聊|邀请码"
)
_RECOMMENDED = re.compile(r"推荐[^。]{0,40}(?:点击|扫码|识别)[^。]{0,6}(?:链接|下载|二维码)")
_ENGLISH = re.compile(
    r"\b(?:dm|message|call|text|e-?mail|contact|reach) (?:me|us|my office)\b[^.]{0,40}\b(?:book|"
    r"schedul|appointment|session|discount|course|help|"
    r"information|at \[?|via|at \d)|\b(?:feel free to|hesitate to|please|you can) (?:contact|reach|"
    r"call|e-?mail) me\b|"
    r"\b(?:on|via) (?:telegram|whatsapp|signal|wechat|line)\b[^.]{0,4}@|\bsubscribe to (?:my|our)|"
    r"\buse code [a-z]+\d|\bsliding.scale\b[^.]{0,20}my number|\bvisit (?:my|our) web ?site|"
    r"\blink in (?:my|the) bio|\bfollow (?:me|us) on\b|\bbuy now\b|\b\d+ ?% off\b|"
    r"\bfirst session (?:is )?free|"
    r"\b(?:book|schedule) (?:a |your )?(?:free |first )?(?:consultation|session|"
    r"appointment) with (?:me|us)|\bprice of one\b"
)


def solicits(sentence: str) -> bool:
    """Whether one sentence advertises, or asks for the reader's contact or offers the writer's."""
    view = contacts.folded(_with_tokens(sentence))
    if _IMPERATIVES.search(view) or (_DISGUISED.search(view) and not _STORY.search(view)):
        return True
    if _ENGLISH.search(view):
        return True
    add = _ADD.search(view)
    if add and _ADD_OBJECT.search(view, add.end() - 1):
        return True
    if _STORY.search(view):
        return False
    if _TOKEN.search(view) and _INVITATION.search(view):
        return True
    offer = _OFFER.search(view) and _GOODS.search(view)
    return bool(offer or _RECOMMENDED.search(view))


def solicitations(text: str) -> list[Span]:
    """The spans of the sentences that solicit."""
    if not _worth_a_look(text):
        return []
    spans = ((text[start:end], (start, end)) for start, end in sentences.spans(text))
    return [span for sentence, span in spans if _worth_a_look(sentence) and solicits(sentence)]


def share(text: str) -> float:
    """The share of the text's characters that stand in sentences that solicit."""
    return sum(end - start for start, end in solicitations(text)) / max(len(text), 1)


def solicitation(text: str) -> tuple[str, int]:
    """A text without the sentences that solicit; whole where they are too much of it.

    Returns:
      the text and the number of sentences cut.
    """
    spans = solicitations(text)
    if not spans or sum(end - start for start, end in spans) > MAX_SHARE * len(text):
        return text, 0
    return contacts.cut(text, spans, "")


def is_advertising(text: str) -> bool:
    """Whether more than a third of the text solicits."""
    return share(text) > MAX_SHARE


def _worth_a_look(text: str) -> bool:
    return _GATE.search(text) is not None or _GATE_LATIN.search(text) is not None


def _with_tokens(sentence: str) -> str:
    """The sentence with placeholders for accounts and numbers, as it reads after cleaning."""
    for rule in (
        personal_data.email,
        personal_data.user_url,
        personal_data.phone,
        personal_data.wechat,
        personal_data.qq,
    ):
        sentence, _ = rule(sentence)
    return sentence
