"""The words of the prompt check: data only, no rules.

Entries are separated by commas. A plain entry matches whole words, including the plural. `stem*` matches any word that
begins with it. An entry of several words matches them in sequence. Spelling is normalised on both sides (case, accents,
look-alikes: `spelling.py`), so each entry is listed once, in its ordinary form. `matching.py` reads these lists;
`prompt.py` decides what follows from a match. Clinical terms are preferred; a vulgar term is listed only if it is the
usual way to ask for what the list refuses.
"""

from __future__ import annotations

# Sexual acts and pornography: refused for adults too, because an image of them is explicit in any style.
# Ambiguous words (birds, names, Latin) are listed only in phrases that make their meaning clear.
EXPLICIT = """
porn*, sex, sexx, hentai, xxx, xxxrated, x rated, nsfw, rule34, rule 34, pr0n, seggs, ecchi, masturbat*,
fellatio, cunnilingus, anilingus, ejaculat*, orgasm*, coitus, intercourse, giving head, phuck*,
nude deepfake, fake nude, deepfake porn, anal penetration, penetration scene, sexual intercourse,
sexual act, sexual penetration, vaginal penetration, penetrating her, penetrating him, fornicat*, blowjob,
blow job, handjob, footjob, titjob, rimjob, deepthroat*, cumshot, creampie, bukkake, gangbang*, gang bang,
threesome, foursome sex, orgy, orgies, anal, doggystyle, doggy style, missionary position, cowgirl position,
dildo, vibrator inside, buttplug, butt plug, strapon, fisting, bdsm, bondage, ahegao, futanari, futa, fuck*,
cunt, pussy, pussies, cumming, covered in cum, cum on, dripping cum, full of cum, facial cum, erect penis,
erect penises, erect cock, hard cock, big cock, huge cock, sucking cock, cocksuck*, cock sucking, big dick,
huge dick, hard dick, erect dick, sucking dick, dick pic, penis inside, penis in her, big tits, huge tits,
bare tits, naked tits, tits out, spread pussy, spreading her legs, spread her legs, legs spread,
making love naked, bestiality, zoophil*, necrophil*, incest*, rape, raped, raping, rapist, molest, molested,
molesting, molester, molestation, upskirt, sexual assault, sexually assault*, revenge porn, deepfake nude,
nudify*, non consensual nude, non consensual nudity, nonconsensual nude, nonconsensual nudity, undress her,
undress him, remove her clothes, remove his clothes, geschlechtsverkehr, oralsex, ficken, fickt, gefickt,
vergewaltig*, sexe oral, relation sexuelle, sodomie, fellation, partouze, sexo, follando, follar, mamada,
sesso, scopata, pompino, sexo oral, foder, fodendo, boquete, estupro, порно*, порнуха, секс, секса, сексом,
сексуальный акт, минет, трахать, трахает, трахают, трахаются, изнасилов*, мастурб*, дрочит, дрочить, оргазм*
"""

# Nudity, underwear, anatomy and allure: allowed for adults (art, medicine, fashion; the image classifier
# checks the image), refused if the prompt also mentions a minor.
SUGGESTIVE = """
nude, nudes, nudity, nudis*, naked*, unclothed, undressed, undressing, undresses, topless, disrob*,
skinny dip*, without clothes, no clothes, without clothing, no clothing, wearing nothing,
takes off her clothes, taking off her clothes, takes off his clothes, taking off his clothes, clothes off,
in the nude, birthday suit, bare breast, bare bottom, bare butt, bare ass, bare chested woman,
bare buttocks, butt naked, sexy ass, nice ass, big ass, boob, breasts, cleavage, nipple, areola, buttocks,
genital*, penis, penises, phallus, vagina, vaginas, vaginal, vulva, clitoris, scrotum, testicle, semen,
pubic, crotch shot, cameltoe, camel toe, spread legs, spread eagle, sexy, sexier, sexiest, sexual*,
sensual*, erotic*, seductive*, seduc*, lewd*, lust, lustful*, horny, kinky, aroused, provocative pose,
suggestive pose, provocatively, suggestively, fetish*, lingerie, panties, panty, underwear, bra, thong,
micro bikini, string bikini, see through bikini, see through swimsuit, see through shirt, see through top,
see through dress, see through clothes, wet t shirt, negligee, garter belt, strip tease, striptease,
stripper, stripping, strip club, pole dance, pole dancing, pole dancer, lap dance, twerk*, prostitut*,
hooker, escort girl, brothel, fondl*, grope, groped, groping, french kiss*, shibari, dominatrix,
shirtless sexy, playboy model, onlyfans, wet and naked, barely dressed, scantily clad, scantily dressed,
nackt*, nacktheit, entkleidet, unterwasche, dessous, erotik, erotisch*, sexuell*, busen, nue, nues, nus,
tout nu, enfant nu, garcon nu, denude, nudite, deshabill*, sous vetement, erotique, seins, desnud*,
desnudez, ropa interior, erotico, erotica, tetas, nuda, nudo, nudi, nudita, mutande, mutandine, reggiseno,
seminud*, spogliat*, nua, nuas, nudez, pelada, pelado, calcinha, roupa intima, sem roupa, sin ropa,
senza vestiti, голый, голая, голое, голые, голого, голой, голых, голую, голыми, голышом, обнажен*, раздет*,
эротик*, эротич*, сексуал*, нижнее белье, нижнем белье, нагая, нагой, нагие, без одежды
"""

# People under 18. Alone harmless ("children playing"); with a word of the two lists above always refused.
# "girl" is not here, because it is widely said of adult women: it counts with a word of YOUTH before it
# (`matching.py`).
MINOR = """
child, children, childlike, child s, kid, kids, kiddo, kiddie, minors, a minor, minor girl, minor boy,
underage*, under age, under aged, underaged, prepubescent*, pubescent*, prepubert*, preteen*, pre teen,
pre teenage, tween, teen*, adolescen*, juvenile, youngster, infant*, toddler, newborn, baby, babies, boy,
schoolchild*, schoolgirl*, schoolboy*, schoolkid*, school girl, school boy, school kid, school child,
school uniform, school age, school aged, high school*, highschool*, middle school*, elementary school*,
elementary student, middle schooler, primary school*, junior high*, grade school*, grade schooler,
first grader, second grader, third grader, fourth grader, fifth grader, sixth grader, seventh grader,
eighth grader, ninth grader, tenth grader, grader, kindergart*, preschool*, nursery school, daycare,
girl scout, boy scout, barely legal, jailbait, sweet sixteen, loli, lolis, lolita, shota, shotas,
girl child, little one, under eighteen, under 18, below 18, not yet eighteen, not yet 18, childhood, kinder,
kleinkind*, kind nackt, nacktes kind, kleines kind, ein kind, madchen, maedchen, kleiner junge, schuler,
schulerin, schuelerin, schulmadchen, minderjahrig*, minderjaehrig*, jugendliche, saugling, enfant, fillette,
petite fille, jeune fille, petit garcon, jeune garcon, garcon, mineure, ecolier, ecoliere, collegienne,
lyceenne, bebe, adolescente, niño, niña, niñito, niñita, nina pequena, nina desnuda, ninas desnudas,
nino pequeno, nino desnudo, ninos desnudos, menor de edad, menores de edad, colegiala, bambino, bambina,
bambini, bambine, ragazzina, ragazzino, minorenne, minorenni, scolaretta, neonato, criança, crianca, menina,
menino, menor de idade, menores de idade, garotinha, garotinho, bebê, ребенок, ребенка, ребенку, ребенком,
ребёнок, дети, детей, детям, детьми, детский, детская, детское, детские, девочк*, мальчик*, школьниц*,
школьник*, подросток, подростк*, малолет*, несовершеннолет*, младен*, малыш*
"""

# A word of YOUTH at most three words before one of YOUTH_NOUNS makes a minor: "young girl", "little blonde
# sister".
YOUTH = """
young, younger, little, small, tiny, teeny, wee, preteen, minor, schoolage, pequena, pequeno, junge, jeune
"""
YOUTH_NOUNS = "girl, girls, girly, boy, daughter, son, sister, brother, niece, nephew, pupil, 1girl, 1boy, lolita"

# Sexual content with minors by one word: there is no harmless image to be had from these.
MINOR_SEXUAL = """
child porn*, childporn*, kid porn*, kidporn*, kiddie porn*, kiddieporn*, teen porn*, cheese pizza porn,
csam, pedo, pedos, pedophil*, paedophil*, paedo, pedobear, lolicon*, lolikon*, shotacon*, shotakon*,
toddlercon*, pthc, child sexual abuse, child erotica, child molest*, child grooming, minor attracted,
jailbait porn, ddlg, kinderporn*, kindesmissbrauch*, padophil*, paedokriminell*, pedoporn*, pedopornograf*,
pedopornograph*, pornografia infantil, pornographie infantile, pedofil*, pederast*, детское порно,
детская порнография, педофил*
"""

# Injury shown for its own sake. Battles, horror, surgery, zombies and blood as such are not here: they are
# ordinary subjects of film, history, games and medicine.
GORE = """
gore, gory, gorefest, guro, snuff film, snuff video, torture porn, dismember*, disembowel*, eviscerat*,
decapitat*, behead*, mutilat*, flayed alive, skinned alive, flaying, impaled corpse, impaled body,
guts spilling, spilled guts, intestines spilling, intestines hanging, entrails spilling, entrails hanging,
brains splattered, brain splattered, blood splattered corpse, bloody corpse, mangled corpse, mangled body,
mangled bodies, severed head, severed limb, severed arm, severed leg, severed hand, severed body,
chopped up body, cut into pieces body, dead bodies piled, pile of corpses, piles of corpses,
pile of dead bodies, torn apart body, ripped apart body, exploding head, exploded head, crushed skull,
being tortured, tortured to death, torturing, burned alive, burning alive, graphic violence,
extreme violence, school shooting, mass shooting, execution video, executed prisoners bleeding,
animal cruelty, torturing animals, cannibalism scene, eating human flesh, enthaupt*, verstummel*, eventre,
eventree, decapite*, descuartiz*, decapitad*, squartat*, smembrat*, esquartejad*, расчлен*, обезглав*,
кишки наружу
"""

# Suicide and self-injury. Help, prevention and titles are in HARMLESS.
SELF_HARM = """
suicide*, suicidal*, self harm*, selfharm*, self injur*, self mutilat*, automutilat*, cutting herself,
cutting himself, cutting myself, cutting themselves, cuts herself, cuts himself, cut myself,
cutting her wrists, cutting his wrists, cutting my wrists, cutting her arms, cutting his arms,
cutting my arms, cutting their wrists, slit wrists, slits her wrists, slits his wrists, slitting her wrists,
slitting his wrists, slitting my wrists, slit her wrists, slit his wrists, slit my wrists, slashed wrists,
cuts on her wrist, cuts on his wrist, cuts on my wrist, cuts on her arm, cuts on his arm, cuts on my arm,
hanging from a noose, hangs from a noose, hanging by a noose, kill myself, kill herself, kill himself,
kill themselves, kill yourself, killing myself, killing herself, killing himself, killing themselves,
hanging herself, hanging himself, hanging myself, hang myself, hangs herself, hangs himself, hanged herself,
hanged himself, noose around her neck, noose around his neck, noose around my neck, noose around their neck,
shooting himself in the head, shooting herself in the head, shoots himself, shoots herself,
burning herself with, burning himself with, want to die, wants to die, end my life, ending her life,
ending his life, overdosing, pro ana, proana, thinspo*, thinspiration, self immolat*, selbstmord*, suizid*,
selbstverletz*, ritzt sich, automutilation, se suicide, suicidio*, autolesion*, autolesionism*,
automutilacao, самоубий*, суицид*, селфхарм, режет себе вены
"""

# Hatred of groups and recruitment for violent movements. Slurs are limited to those with no other common
# meaning.
HATE = """
nazi propaganda, neo nazi*, neonazi*, heil hitler, sieg heil, hitler was right, glorifying hitler,
glorify hitler, praising hitler, worship hitler, glorifying nazis, pro nazi, nazi glorification,
glorification of nazi*, white power, white supremac*, white pride world wide, swastika flag,
swastika armband, swastika tattoo, nazi flag, nazi swastika, nazi salute, hitler salute, ku klux klan, kkk,
burning cross rally, race war, glorifying ethnic cleansing, promoting ethnic cleansing, gas the jews,
holocaust denial, holocaust hoax, holocaust never happened, kill all jews, kill the jews, kill all muslims,
kill all blacks, kill all gays, kill all christians, kill all immigrants, kill all whites, death to jews,
death to muslims, death to gays, death to all jews, death to all muslims, jewish vermin, jews are vermin,
muslims are vermin, immigrants are vermin, are subhuman, happy merchant, jews as rats, jews as vermin,
immigrants as vermin, immigrants as rats, muslims as vermin, black people as monkeys, black people as apes,
as subhuman, untermensch*, racial inferiority, racist caricature, racist propaganda, antisemitic caricature,
antisemitic propaganda, antisemitic cartoon, hate propaganda, isis propaganda, join isis, join al qaeda,
isis recruitment, isis flag, islamic state propaganda, islamic state recruitment, al qaeda recruitment,
al qaeda propaganda, jihadist propaganda, jihadist recruitment, terrorist propaganda, terrorist recruitment,
extremist propaganda, extremist recruitment, glorifying terrorism, glorify terrorism, join the jihad,
lynching, lynched, lynch mob, nigger*, nigga, raghead, towelhead, wetback, auslander raus, juden raus,
muerte a los judios, mort aux juifs, morte agli ebrei, бей жидов, смерть евреям
"""

# Ordinary phrases that contain a listed word. Each covers only itself: a listed word elsewhere still
# counts.
HARMLESS = """
sex education, sex ed, same sex, opposite sex, either sex, both sexes, battle of the sexes, sex pistols,
sex and the city, sex ratio, sex chromosome, biological sex, sex determination, sex linked, fair sex,
bello sexo, beau sexe, sexual education, sexual health, sexual orientation, sexual reproduction,
sexual dimorphism, sexual selection, sexual harassment prevention, naked mole rat, naked eye,
naked singularity, naked cake, naked bike, naked truth, naked oat, naked lady lily, naked ladies lily,
naked neck, naked raspberry, naked gun, nude lipstick, nude lip, nude color, nude colour, nude colored,
nude coloured, nude tone, nude shade, nude heel, nude pump, nude palette, nude makeup, nude nail,
nude polish, nude eyeshadow, nude manicure, nude beige, nude pink, nude shoe, nude stiletto, pussy willow,
pussy cat, pussy riot, pussy bow, pussy toes, pussyfoot*, cum laude, anal fin, anal retentive,
coconut creampie, threesome of golfers, fuck cancer, fuck off, fuck you, fuck yeah, fuck it, fuck this,
fuck that, fucking awesome, fucking great, fucking amazing, fucking cool, fucking good, fucking beautiful,
fucking hell, fucking love, what the fuck, rape seed, rape field, oilseed rape, rape flower, rape blossom,
rape plant, rape oil, field of rape, fields of rape, rape of the sabine, rape of europa, rape of proserpina,
rape of persephone, rape of the lock, rape crisis, rape prevention, rape survivor, stop rape, end rape,
human bondage, bondage of egypt, chapter xxx, super bowl xxx, xxx large, orgy of color, orgy of colour,
cock crowing, cock crows, cock pheasant, cock of the rock, cock a doodle, turkey cock, weather cock,
kinky hair, kinky curl, kinky curly, kinky twist, horny toad, horny lizard, horny orchid, bottle nipple,
nipple cactus, penis plant, erotic cake shop, stripping paint, paint stripping, stripping wallpaper,
wallpaper stripper, paint stripper, wire stripper, wire stripping, stripping wire, bra size chart,
lust for life, wanderlust, undressed salad, baby blue, baby pink, baby doll, baby bump, baby shower,
baby oil, baby powder, baby yoda, baby grand, unborn baby, unborn child, expecting a baby,
expecting a child, maine coon, kid glove, kid leather, kid skin, kid rock, billy the kid, karate kid,
cisco kid, child s pose, childbirth, childe hassam, inner child, childless, child free, minor key,
minor chord, minor scale, in a minor, minor detail, minor change, intercourse pennsylvania,
social intercourse, boy shorts, boy band, boy george, bell boy, boy toy car, beastie boys, beach boys,
pet shop boys, backstreet boys, boy meets world, enfant terrible, las meninas, infanta, infantry,
infantryman, infantrymen, kinder surprise, kinder chocolate, kinder egg, kinder and, high school musical,
juvenile plumage, el nino, al gore, gore vidal, gore tex, gore verbinski, gore range, lesley gore,
ghana gore, gore new zealand, judith beheading holofernes, judith beheading, beheading of saint john,
beheading of st john, beheading of john, beheading holofernes, decapitated flower, behead flowers,
beheading roses, suicide squad, suicide prevention, suicide hotline, suicide door, suicide awareness,
suicide helpline, anti suicide, suicide survivor, suicide slide, cutting herself a, cutting himself a,
cutting myself a, cuts herself a, cuts himself a, self harm awareness, self harm prevention,
self harm recovery, white power ranger, white power button, white power cable, white power cord,
white power outlet, white power plant, white power supply, white power station, white power tool,
white power line, white power bank, lynching memorial, national memorial lynching, anti lynching
"""

# Words that join listed words in a string without spaces ("hotteenporn"); never a reason to refuse by
# themselves.
JOINED_WORDS = """
girl, girls, woman, women, young, little, small, hot, video, videos, pics, photo, photos, free, with, and
"""

# Long enough to be searched in the letters of the prompt alone, whatever the spacing.
ANYWHERE_EXPLICIT = "masturbat, pornograph, cunnilingus, ejaculat, gangbang, deepthroat, bestiality"
ANYWHERE_MINOR_SEXUAL = "childporn, kiddieporn, pedophil, paedophil, toddlersex, childsex, preteensex, kinderporno"
ANYWHERE_MINOR = "schoolgirl, schoolboy, preteen, toddler, underage, kindergarten"
ANYWHERE_SUGGESTIVE = """
nudechild, nakedchild, sexychild, nudekid, nakedkid, sexykid, nakedlittle, nudelittle
"""

# Chinese and Japanese have no spaces, so these are searched as substrings; katakana words must be whole katakana runs.
CJK_EXPLICIT = """
色情, 做爱, 做愛, 性交, 口交, 肛交, 强奸, 強姦, 强暴, 轮奸, 輪姦, 手淫, 自慰, 淫荡, 淫蕩, 性爱, 性愛, 黄片,
无码, 乱伦, 亂倫, ポルノ, セックス, フェラ, フェラチオ, 中出し, 手コキ, オナニー, レイプ, エロ動画,
エロ画像, ハメ撮り, アナル, アダルトビデオ
"""
CJK_SUGGESTIVE = """
裸, 性感, 内衣, 內衣, 脱衣, 脫衣, 没穿衣服, 沒穿衣服, 不穿衣服, 情色, 诱惑, 誘惑, 乳房, 生殖器, 阴道, 阴茎,
陰道, 陰莖, ヌード, エロ, エロい, エロティック, エッチ, 下着, パンティー, パンティ, パンチラ, セクシー,
おっぱい, 巨乳, 性的
"""
CJK_MINOR = """
儿童, 兒童, 小孩, 孩子, 幼女, 幼童, 萝莉, 蘿莉, 小女孩, 小男孩, 女童, 男童, 未成年, 小学生, 小學生, 初中生,
中学生, 中學生, 高中生, 婴儿, 嬰兒, 少女, 少年, 正太, 子供, 子ども, こども, 女児, 男児, 児童, 高校生, ロリ,
ショタ, 赤ちゃん, 赤ん坊, 園児
"""
CJK_MINOR_SEXUAL = "儿童色情, 兒童色情, 児童ポルノ, 幼女色情, 恋童, 戀童, ロリコン, ショタコン, 援交, 小児性愛"
CJK_GORE = "血腥肢解, 肢解, 斩首, 斬首, 开膛, 開膛, 虐杀, 虐殺, 内臓が飛び出"
CJK_SELF_HARM = "自杀, 自殺, 自残, 自殘, 割腕, 上吊, リストカット, 自傷"
CJK_HATE = "纳粹宣传, 納粹宣傳, ナチスのプロパガンダ, 希特勒万岁, ヒトラー万歳"
CJK_HARMLESS = """
裸足, 裸眼, 裸麦, 裸子植物, 裸色, 性交流, 性交通, 性交往, 性交互, 性交易所, 口交通, 口交叉, 口交汇, 口交界,
口交错, 口交換, 性爱好, 性愛好, 性爱情, 性愛情, 性爱护, 性愛護, 性感受, 性感覚, 性感觉, 性感冒, 预防自杀,
自殺予防, 自殺防止, 個性的, 男性的, 女性的, 理性的, 感性的, 弹性的, 彈性的, 人性的, 中性的, 磁性的, 特性的,
性的平等
"""

# Clothes, as beginnings of words: searched only in the negative prompt, if the prompt mentions a minor.
CLOTHES = """
cloth, dress, garment, outfit, attire, apparel, shirt, tshirt, blouse, sweater, hoodie, jacket, pants, trouser, jeans,
shorts, skirt, uniform, costume, pajama, pyjama, robe, swimsuit, swimwear, bikini, underwear, underpants, diaper,
kleid, hemd, hosen, vetement, chemise, pantalon, jupe, ropa, vestido, camisa, falda, vestiti, camicia,
gonna, roupa, saia, одежд, плать, рубашк, брюк, штан, юбк
"""
CJK_CLOTHES = "衣, 服, 裤, 褲, 裙, ズボン, シャツ, スカート"
