package schema

import (
	"embed"
	"io/fs"
)

//go:embed jsonschema/*.json asyncapi.yaml
var files embed.FS

// Files holds the machine-readable contracts: jsonschema/<type>.json for the data of each type,
// jsonschema/envelope.json for a whole event in structured mode, and asyncapi.yaml (AsyncAPI 3.0),
// which refers to the schemas. The schemas use only the common part of draft-07 and 2020-12.
func Files() fs.FS { return files }

// JSONSchema returns the JSON Schema of t's data; nil for a type that is not Known. The schema is
// lax, as readers must be: unknown members are allowed and enumerations are open.
func JSONSchema(t Type) []byte {
	if !t.Known() {
		return nil
	}
	text, err := files.ReadFile("jsonschema/" + string(t) + ".json")
	if err != nil {
		panic("schema: " + err.Error()) // embedded, and a test reads all files: cannot happen
	}
	return text
}

// DataSchema returns the address of t's JSON Schema, its $id, as in an event's dataschema; empty
// for a type that is not Known. The address names the schema. Nothing can be fetched from it.
func DataSchema(t Type) string {
	if !t.Known() {
		return ""
	}
	return "urn:renewd:schema:" + string(t) + ":v1"
}
