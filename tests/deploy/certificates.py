"""Certificates of a mesh, by openssl."""

import subprocess

from containers import need

EXTENSIONS = """basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=URI:spiffe://weft.test/weft/{service}
"""


def certificate(folder, service):
    """An authority (ca.crt) and a certificate of it for this service (tls.crt, tls.key) in the folder, as cert-manager's secrets have them."""

    def openssl(*arguments):
        subprocess.run([need("openssl", "openssl"), *arguments], check=True, capture_output=True, cwd=folder)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt")
    openssl("req", *key, "-subj", "/", "-keyout", "tls.key", "-out", "tls.csr")
    (folder / "extensions").write_text(EXTENSIONS.format(service=service))
    signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions"]
    openssl("x509", "-req", "-in", "tls.csr", "-out", "tls.crt", *signing)
