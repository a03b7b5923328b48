// Runs chat templates as Ollama does: Go's text/template, turns of one role in a row joined.
//
// Standard input: a JSON list of {"template": ..., "messages": [{"role": ..., "content": ...}]}.
// Standard output: a JSON list of {"text": ..., "error": ...}.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type Message struct {
	Role, Content, Thinking string
}

type Case struct {
	Template string
	Messages []Message
}

type Written struct {
	Text  string `json:"text"`
	Error string `json:"error"`
}

func joined(messages []Message) []*Message {
	var turns []*Message
	for i := range messages {
		message := messages[i]
		if n := len(turns); n > 0 && turns[n-1].Role == message.Role {
			turns[n-1].Content += "\n\n" + message.Content
		} else {
			turns = append(turns, &message)
		}
	}
	return turns
}

func write(one Case) Written {
	parsed, err := template.New("").Option("missingkey=zero").Parse(one.Template)
	if err != nil {
		return Written{Error: err.Error()}
	}
	data := map[string]any{"Messages": joined(one.Messages), "System": "", "Response": ""}
	var text bytes.Buffer
	if err := parsed.Execute(&text, data); err != nil {
		return Written{Error: err.Error()}
	}
	return Written{Text: text.String()}
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	written := make([]Written, 0, len(cases))
	for _, one := range cases {
		written = append(written, write(one))
	}
	if err := json.NewEncoder(os.Stdout).Encode(written); err != nil {
		panic(err)
	}
}
