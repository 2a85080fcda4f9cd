"""Makes the packages, keys, certificates and signature bundles of this folder, for tests/golden.rs.

    pip install model-signing==1.1.1 pyOpenSSL==26.4.0 cryptography==50.0.2
    python make.py

The bundles are what model-signing, the reference implementation of OpenSSF Model Signing, writes; each is verified by it
as well. Private keys are made anew every time and thrown away, so every run changes every key and signature.
"""

import datetime
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

import model_signing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HERE = Path(__file__).parent
CURVES = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}


def date(year):
    return datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc)


def make_package(folder):
    folder.mkdir()
    (folder / "README.md").write_text("An adapter for tests.\n")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors, data = {}, b""
    for name, shape in [("lora_A.weight", [1, 4]), ("lora_B.weight", [4, 1])]:
        values = struct.pack("<4f", 0.5, -0.5, 0.25, -0.25)
        name = f"base_model.model.model.layers.0.self_attn.q_proj.{name}"
        tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    header = json.dumps(tensors).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)


def write_private(path, key):
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return path


def write_public(path, key):
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(encoding, form))
    return path


def write_certificate(path, certificate):
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def name(common_name):
    pairs = [(NameOID.ORGANIZATION_NAME, "Example"), (NameOID.COMMON_NAME, common_name)]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


def usage(sign=False, issue=False):
    flags = dict.fromkeys(["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"], False)
    return x509.KeyUsage(digital_signature=sign, key_cert_sign=issue, crl_sign=issue, encipher_only=False,
                         decipher_only=False, **flags)  # fmt: skip


def certificate(common_name, key, issuer, issuer_key, hash_of, until, alternative=None):
    """Of an authority, or of a signer if it has an alternative name."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common_name))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(date(2026))
        .not_valid_after(date(until))
        .add_extension(x509.BasicConstraints(ca=alternative is None, path_length=None), critical=True)
        .add_extension(usage(sign=alternative is not None, issue=alternative is None), critical=True)
    )
    if alternative is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        builder = builder.add_extension(purposes, critical=False)
    return builder.sign(issuer_key, hash_of)


def sign(config, bundle, ignored=()):
    # With the bundle's own name, as the command line does.
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[*ignored, "model.sig"])
    config.set_hashing_config(hashing).sign("adapter", "adapter/model.sig")
    return Path("adapter/model.sig").rename(bundle)


def sign_with_keys(scratch):
    for curve, kind in CURVES.items():
        private = ec.generate_private_key(kind())
        key = write_private(scratch / f"{curve}.key", private)
        public = write_public(HERE / f"{curve}.pem", private)
        config = model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
        bundle = sign(config, HERE / f"key-{curve}.sig")
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
        verifier.verify("adapter", bundle)

    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=scratch / "p256.key")
    sign(config, HERE / "without-readme.sig", ignored=["README.md"])
    sign(config, HERE / "without-weights.sig", ignored=["adapter_model.safetensors"])
    for form, hashing in {
        "shards": model_signing.hashing.Config().use_shard_serialization(shard_size=64),
        "blake3": model_signing.hashing.Config().use_file_serialization(hashing_algorithm="blake3"),
    }.items():
        config.set_hashing_config(hashing).sign("adapter", HERE / f"{form}.sig")


def sign_with_certificates(scratch):
    for form, root_key, intermediate_key, key, alternative in [
        (
            "mixed",
            rsa.generate_private_key(65537, 2048),
            ec.generate_private_key(ec.SECP384R1()),
            ec.generate_private_key(ec.SECP256R1()),
            x509.RFC822Name("release@example.com"),
        ),
        (
            "p521",
            *(ec.generate_private_key(ec.SECP521R1()) for _ in range(3)),
            x509.UniformResourceIdentifier("https://ci.example.com/adapters"),
        ),
    ]:
        root, middle, leaf = f"Root {form}", f"Intermediate {form}", f"Signer {form}"
        root_hash = hashes.SHA256() if form == "mixed" else hashes.SHA512()
        middle_hash = hashes.SHA384() if form == "mixed" else hashes.SHA512()
        trusted = HERE / f"root-{form}.pem"
        write_certificate(trusted, certificate(root, root_key, root, root_key, root_hash, 2046))
        intermediate = certificate(middle, intermediate_key, root, root_key, root_hash, 2036)
        signing = certificate(leaf, key, middle, intermediate_key, middle_hash, 2028, alternative)
        config = model_signing.signing.Config().use_certificate_signer(
            private_key=write_private(scratch / f"{form}.key", key),
            signing_certificate=write_certificate(scratch / f"{form}.pem", signing),
            certificate_chain=[write_certificate(scratch / f"{form}-intermediate.pem", intermediate)],
        )
        bundle = sign(config, HERE / f"certificate-{form}.sig")
        verifier = model_signing.verifying.Config().use_certificate_verifier(certificate_chain=[trusted])
        verifier.verify("adapter", bundle)


def main():
    shutil.rmtree(HERE / "adapter", ignore_errors=True)
    make_package(HERE / "adapter")
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(HERE)  # so that bundles hold relative paths
        sign_with_keys(Path(scratch))
        sign_with_certificates(Path(scratch))


if __name__ == "__main__":
    main()
