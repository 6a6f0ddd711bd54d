"""Files that numpy 1.26.4 wrote (`numpy.save`, `pickle.dumps`), compressed, as text."""

import base64
import zlib


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


# {numpy.int32(2007000032): classes 0 and 14, numpy.int32(2007000039): class 19,
# numpy.str_("2007_000032"): class 7}, float32 vectors of 20
CLS_LABELS_NPY = _unpacked(
    "c-pOyT~8B16ozMM`EXGLMFkaI`Ea+oRtn`KhNKspc;UuECLt*oq}kmr8IscWot<hLA?Xc;Uh@b1Y2NWOV5Z$"
    "oG(ZCCo4k|EnKN&mbIyv}U$=HN@{Rm3D`6CH^OIp7Zko1X?$x>AUaef`l~9#Gd(|kE^@w?mP~NSKZ5$c@CcT"
    "{sYR!X2D;v~#m_2A##lFY6*V4;84C=K=@Ma)%kbak5tMp%?x#SoFj^-nEf;7dT<!YI@sUlj9P{&YdfDp2|j^"
    "Xa<2}UUHS#GMN$=V_GVzKz;LaKMT1%Xk&yNmlrcwpTC6a`+@<2uGzKX^ZnhbnlSVj>CNz@tBdiNIsuN&gCde"
    "#c}7Pbi);!g}z}m?WQ~n3m-3<T0MdxqErMP`NKDW@IkAn)u4^I$MOa3*@hK{Xe`GFnl(~CY<!S!hO@hEX7=c"
    "JFjpTDBi}nCY$L|{7<zDumm!SVyKjoh3#Ap@6<BhQ`pHeT-!~%BLW|M$6k_6i?P?F%fH<dFH5UFWIOmsv6xJ"
    "hQxh#wEXNb&Z!yu`ca9Z-Rln&8tohkX8qT{;"
)
# {"keys": int64 [3, 14], "cam": float16 [[[0, 1], [2, 3]]], "n": numpy.float64(0.5)} by protocol
PICKLES = {
    2: _unpacked(
        "c-nQ4$xg#C7=+z)p*36C_k9anBsld@3B-{|J@}McmAFB!Xwy#O9CAS7(w4pj@4|zDowO%l4*o68@A*c4H{L)"
        "@r$7jK^^*uW9>m>#V)0(+Tiv)L+in=T32lZx?*)+zV=gI-Y>Ni1%thWN0~C0Z_gX%Ws2}JHMbXKrU=Jmyq-M"
        "vJ?cfeGLzEdRBT$A})6Ut(0CSVTmQ4EU-MnL{{dNrt<Bt&*8LFn8PqXS+YBU<p-%9CW6NzPSEQ(H5xp|UlVK"
        "T8I6m6AZO=8`1w9VZvHiRM4#+yRb*kah$HB=GX7-2_b^p|_=YWg0-zM_lY+=G-`&QNvoNS<)0c}EP#5+`0-I"
        "Kb&YUm9_@<AxMxQ(z6}8hF8A{tdkJ6t6<2`ucppl?Glj+zfHcV8zxCcIu63"
    ),
    3: _unpacked(
        "c-nQ)yH3L}6b4`?DNqcQa=+ghGG$=ufCQo&mNIzCh7vc(6;0aTafS>?EG6_Uc@uDwG6DZ^j&yva@5pb?D~KD"
        "k2q7<Vk--vao=gf)j8*I<`A82#rNV+fsaTBDOsiaI3cJ~&>7aRq!^jk^z7=7i#3IL%%PeM3(Vj03bTNr3mIK"
        ">B!yf4Dqr?iws>__fGP7H(`M&@7Wl|SLG&<3&-*rfn&b(t?qZ<X)ScC~Sq%CWFQyO`TW4n@#&Fm68vH_oOuv"
        ">w99Qy{8zo`R5wW~A8J$b;P#!*zCmE!oH56MJ03Khl4kI}<vWt?%G|7~1EHDU63hs$?daa`x#HwUYDB>"
    ),
    4: _unpacked(
        "c-noA!D_-l5QcX*No}Es6#5RHa_Gr|(4sdNa_|Mpx~8nuMA>W(IS9R273Sve`}rpAx@qa9^gqnN%s<~h@A2u"
        "8v!D(76u;$71-dWmV%?;AW%IPCmu{h~RSoF&#pZfdR?gPi;Rs5C5!5N?t>p;Gwixpnc9^0sxfENNgp#>y*7@"
        "Z`ECx92+igUAh%Cz{pI)Iz<}f>qdr|un>wb6mF-2MxFtO=eGR)0Sg3pj*2h%0-`tZv(cYl$uJ#5IH*(eZs2_"
        "xvL(rT%!|1K~F|1$!@>->Zd@2b-;Et7h3"
    ),
    5: _unpacked(
        "c-m`VoodR+00y;FG<sOFQ!9(7^a$mZ<`z`yCFd8V>H(RlMVZM{dbs1$it=-lO4HI(i>6GTqA^VXqK|<YO7lV"
        "KDLt%U{XjaUq_Q9tsJMqI(_%_zNBfkZDH`6)J&ZO}{QUg9{sRG+@Mb8PlH|?QI;Drvc}fXTQ4e!+V(yd-7L9"
        "2f3~*q>;K1NCC4-}fDa{CBSOyOkqZqxJyqVgkWblIxW6Yb<BZ}mu+|rzq%*3LiM4%Jdijxy_5<wmU8*G8!U}"
        "vav9@tN51F9<30{~YRbr1"
    ),
}
