// Reads cases from standard input, verifies each with each library, and writes what they say.
//   in:  [{"name", "secret", "headers", "body"}]
//   out: [{"name", "library", "verified", "error"}]
import {readFileSync} from "node:fs";
import {Webhook as StandardWebhook} from "standardwebhooks";
import {Webhook as SvixWebhook} from "svix";

const libraries = {standardwebhooks: StandardWebhook, svix: SvixWebhook};
const results = [];
for (const {name, secret, headers, body} of JSON.parse(readFileSync(0, "utf8"))) {
  for (const [library, Webhook] of Object.entries(libraries)) {
    try {
      new Webhook(secret).verify(body, headers);
      results.push({name, library, verified: true, error: ""});
    } catch (error) {
      results.push({name, library, verified: false, error: `${error.name}: ${error.message}`});
    }
  }
}
console.log(JSON.stringify(results));
