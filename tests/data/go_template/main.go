// Fill templates with messages as Ollama does: reads cases as JSON, writes their texts as JSON.
// Ollama joins the system texts and passes them beside all messages.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string
	Content string
}

type templateCase struct {
	Template string
	Messages []message
}

func render(each templateCase) string {
	parsed, err := template.New("").Option("missingkey=zero").Parse(each.Template)
	if err != nil {
		log.Fatal(err)
	}
	var systems []string
	for _, one := range each.Messages {
		if one.Role == "system" {
			systems = append(systems, one.Content)
		}
	}
	var text strings.Builder
	values := map[string]any{
		"System":   strings.Join(systems, "\n\n"),
		"Messages": each.Messages,
		"Response": "",
	}
	if err := parsed.Execute(&text, values); err != nil {
		log.Fatal(err)
	}
	return text.String()
}

func main() {
	var cases []templateCase
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		log.Fatal(err)
	}
	texts := []string{}
	for _, each := range cases {
		texts = append(texts, render(each))
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		log.Fatal(err)
	}
}
