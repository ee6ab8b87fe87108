// Reads cases from standard input, verifies each with each library, and writes what they say. The libraries know only v1:
// v1a, whose keys begin with "whpk_", is verified by Node's own Ed25519, as the specification describes it.
//   in:  [{"name", "secret", "headers", "body"}]
//   out: [{"name", "library", "verified", "error"}]
import {createPublicKey, verify} from "node:crypto";
import {readFileSync} from "node:fs";
import {Webhook as StandardWebhook} from "standardwebhooks";
import {Webhook as SvixWebhook} from "svix";

class Ed25519Webhook {
  constructor(secret) {
    const x = Buffer.from(secret.slice("whpk_".length), "base64").toString("base64url");
    this.key = createPublicKey({key: {kty: "OKP", crv: "Ed25519", x}, format: "jwk"});
  }

  verify(body, headers) {
    const message = Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`);
    const signatures = headers["webhook-signature"].split(" ").map((s) => s.split(",")).filter(([version]) => version === "v1a");
    if (!signatures.some(([, s]) => verify(null, message, this.key, Buffer.from(s, "base64")))) {
      throw Object.assign(new Error("no v1a signature matches"), {name: "WebhookVerificationError"});
    }
  }
}

const symmetric = {standardwebhooks: StandardWebhook, svix: SvixWebhook};
const asymmetric = {"node:crypto": Ed25519Webhook};
const results = [];
for (const {name, secret, headers, body} of JSON.parse(readFileSync(0, "utf8"))) {
  for (const [library, Webhook] of Object.entries(secret.startsWith("whpk_") ? asymmetric : symmetric)) {
    try {
      new Webhook(secret).verify(body, headers);
      results.push({name, library, verified: true, error: ""});
    } catch (error) {
      results.push({name, library, verified: false, error: `${error.name}: ${error.message}`});
    }
  }
}
console.log(JSON.stringify(results));
