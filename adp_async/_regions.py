"""Where a region is: its full name, and the domain of its realm.

OCI's published regions are known here, so that a session needs nothing of ``oci``, whose import
takes a quarter of a second.  ``oci`` is asked about any other, as it reads
``~/.oci/regions-config.json``, ``OCI_REGION_METADATA`` and ``OCI_DEFAULT_REALM``.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from attrs import frozen

#: Per domain, the regions of its realms: key=name.
_REGIONS: Final = {
    "oraclecloud.com": (
        "ams=eu-amsterdam-1 aga=us-saltlake-2 arn=eu-stockholm-1 auh=me-abudhabi-1 bog=sa-bogota-1 "
        "bom=ap-mumbai-1 cdg=eu-paris-1 cwl=uk-cardiff-1 dxb=me-dubai-1 fra=eu-frankfurt-1 "
        "gru=sa-saopaulo-1 hsg=ap-batam-1 hyd=ap-hyderabad-1 iad=us-ashburn-1 icn=ap-seoul-1 "
        "jbp=ap-kulai-2 jed=me-jeddah-1 jnb=af-johannesburg-1 kix=ap-osaka-1 lej=af-casablanca-1 "
        "lhr=uk-london-1 lin=eu-milan-1 mad=eu-madrid-1 mel=ap-melbourne-1 mrs=eu-marseille-1 "
        "mtz=il-jerusalem-1 mty=mx-monterrey-1 nrq=eu-turin-1 nrt=ap-tokyo-1 onm=ap-delhi-1 "
        "ord=us-chicago-1 orf=eu-madrid-3 phx=us-phoenix-1 qro=mx-queretaro-1 ruh=me-riyadh-1 "
        "scl=sa-santiago-1 sin=ap-singapore-1 sjc=us-sanjose-1 syd=ap-sydney-1 vap=sa-valparaiso-1 "
        "vcp=sa-vinhedo-1 xsp=ap-singapore-2 yny=ap-chuncheon-1 yul=ca-montreal-1 "
        "yyz=ca-toronto-1 zrh=eu-zurich-1"
    ),
    "oraclegovcloud.com": (
        "lfi=us-langley-1 luf=us-luke-1 pia=us-gov-chicago-1 ric=us-gov-ashburn-1 "
        "tus=us-gov-phoenix-1"
    ),
    "oraclegovcloud.uk": "brs=uk-gov-cardiff-1 ltn=uk-gov-london-1",
    "oraclecloud8.com": "nja=ap-chiyoda-1 ukb=ap-ibaraki-1",
    "oraclecloud9.com": "ibr=me-ibri-1 mct=me-dcc-muscat-1",
    "oraclecloud10.com": "wga=ap-dcc-canberra-1",
    "oraclecloud14.com": (
        "bgy=eu-dcc-milan-1 dtm=eu-dcc-rating-2 dus=eu-dcc-rating-1 mxp=eu-dcc-milan-2 "
        "ork=eu-dcc-dublin-1 snn=eu-dcc-dublin-2"
    ),
    "oraclecloud15.com": "dac=ap-dcc-gazipur-1",
    "oraclecloud.eu": "str=eu-frankfurt-2 vll=eu-madrid-2",
    "oraclecloud20.com": "beg=eu-jovanovac-1",
    "oraclecloud21.com": "doh=me-dcc-doha-1 vve=me-alrayyan-1",
    "oraclecloud23.com": "ebb=us-somerset-1 ebl=us-thames-1",
    "oraclecloud24.com": "avf=eu-crissier-1 avz=eu-dcc-zurich-1",
    "oraclecloud26.com": "ahu=me-abudhabi-3 rba=me-alain-1",
    "oraclecloud29.com": "rkt=me-abudhabi-2 shj=me-abudhabi-4",
    "oraclecloud35.com": "bno=ap-chuncheon-2 dln=ap-suwon-1 dtz=ap-seoul-2",
    "oraclecloud42.com": "pgc=us-newark-1 yxj=us-ashburn-2",
    "oraclecloud51.com": "jsk=eu-budapest-1",
    "oraclecloud52.com": "hnw=sa-riodejaneiro-1",
}


@frozen
class Region:
    """A region's full *name*, or its key where nobody knows that, and the *domain* of its realm.

    *is_known* False: the commercial realm is assumed.
    """

    name: str
    domain: str
    is_known: bool = True


def find_region(text: str) -> Region:
    """The region with the name or the key *text*.  Blocks where ``oci`` has to be imported.

    >>> find_region("iad")
    Region(name='us-ashburn-1', domain='oraclecloud.com', is_known=True)
    """
    return _published().get(text.lower()) or _told_by_oci(text)


def published_names() -> list[str]:
    """The full names of OCI's published regions."""
    return sorted({each.name for each in _published().values()})


@cache
def _published() -> dict[str, Region]:
    found = {}
    for domain, regions in _REGIONS.items():
        for each in regions.split():
            key, _, name = each.partition("=")
            found[key] = found[name] = Region(name, domain)
    return found


def _told_by_oci(text: str) -> Region:
    # All of it: importing a part does not wait for another thread that imports the whole.
    import oci

    name: str = oci.regions.get_region_from_short_name(text)
    domain: str = oci.regions.endpoint_for(
        "aidp", region=name, service_endpoint_template="{secondLevelDomain}"
    )
    return Region(name, domain, is_known=bool(oci.regions.is_region(name)))
