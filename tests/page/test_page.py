"""The chat page in headless Chromium, driven as a person would: `python tests/page/test_page.py`.

Without an address the page comes from a mock. With KILOTOK_URL set, the tests that need no
particular reply run against that server instead. Screenshots go to SHOTS, if that is set."""

import os
import shutil
import tempfile
import unittest
from pathlib import Path

from mock import KEY, MODEL, Mock
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

SERVER = os.environ.get("KILOTOK_URL")
SHOTS = os.environ.get("SHOTS")
# A real model on a CPU may be slow; anything that takes longer than this is stuck.
WAIT_SECONDS = 60
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --force-device-scale-factor=1
    --disable-dev-shm-usage"""


def browser(profile):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


class Page(unittest.TestCase):
    """One browser for all tests; each has a server and a storage of its own."""

    @classmethod
    def setUpClass(cls):
        cls.profile = tempfile.mkdtemp()
        cls.driver = browser(cls.profile)

    @classmethod
    def tearDownClass(cls):
        cls.driver.quit()
        shutil.rmtree(cls.profile, ignore_errors=True)

    def setUp(self):
        self.mock = None if SERVER else Mock()
        self.url = SERVER or self.mock.url
        self.driver.set_window_size(1200, 900)
        self.driver.get(self.url)
        self.driver.execute_script("localStorage.clear()")
        self.driver.get_log("browser")
        self.open()

    def tearDown(self):
        if self.mock:
            self.mock.close()

    def open(self):
        self.driver.get(self.url)
        self.until(lambda: self.one("#model span").text.endswith(("context", "ready")))

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, true):
        wait = WebDriverWait(self.driver, WAIT_SECONDS, 0.02)
        return wait.until(lambda _: true(), "the page did not get there")

    def say(self, text):
        self.one("#text").send_keys(text + Keys.ENTER)

    def idle(self):
        self.until(lambda: self.one("#send").is_displayed() and not self.all(".live"))

    def shot(self, name):
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(SHOTS) / f"{name}.png"))

    def set(self, name, value):
        self.one("#tune").click()
        field = self.one("#" + name)
        if field.tag_name == "select":
            field.send_keys(value)
        else:
            field.clear()
            field.send_keys(value)
        self.one("#settings .main").click()

    def no_script_errors(self):
        bad = [entry for entry in self.driver.get_log("browser") if entry["source"] != "network"]
        self.assertEqual(bad, [])


class AnyServer(Page):
    """What must work whatever the model says."""

    def test_a_reply_streams_and_is_measured(self):
        self.shot("hello")
        self.set("max_tokens", "48")
        self.say("Say something.")
        self.idle()
        self.assertTrue(self.one(".turn.assistant .md").text)
        figures = self.one(".figures").text
        for name in ("tok/s", "first token", "acceptance", "reply", "prompt"):
            self.assertIn(name, figures)
        if self.mock:
            self.assertIn("(rejection)", figures)
        self.assertTrue(self.one(".figures .one").get_attribute("d"))
        self.shot("reply")
        self.no_script_errors()

    def test_a_second_turn_and_what_is_kept(self):
        self.set("max_tokens", "24")
        self.say("First question.")
        self.idle()
        first = self.one(".turn.assistant .md").text
        self.say("Second question.")
        self.idle()
        self.assertEqual(len(self.all(".turn.user")), 2)
        self.assertEqual(len(self.all(".turn.assistant")), 2)
        if self.mock:
            sent = self.mock.seen[-1]["messages"]
            roles = [message["role"] for message in sent]
            self.assertEqual(roles, ["user", "assistant", "user"])
            self.assertEqual(self.mock.seen[-1]["max_completion_tokens"], 24)
        self.open()
        self.assertEqual(len(self.all(".turn")), 0, "a new chat")
        self.one("#chats .open").click()
        self.assertEqual(len(self.all(".turn")), 4)
        self.assertEqual(self.all(".turn.assistant .md")[0].text, first)
        self.assertEqual(len(self.all(".figures .one")), 2)
        self.one("#chats .gone").click()
        self.driver.switch_to.alert.accept()
        self.until(lambda: not self.all("#chats li"))
        self.assertEqual(len(self.all(".turn")), 0)
        self.no_script_errors()

    def test_an_error_is_shown(self):
        self.one("#tune").click()
        self.one("#tools").send_keys('[{"type": "function", "busy": 1}]')
        self.one("#settings .main").click()
        self.say("busy")
        self.idle()
        fault = self.one(".fault")
        self.assertTrue(fault.find_element(By.TAG_NAME, "span").text)
        self.shot("error")
        self.one("#tune").click()
        self.one("#reset").click()
        self.one("#max_tokens").send_keys("8")
        self.one("#settings .main").click()
        fault.find_element(By.TAG_NAME, "button").click()
        self.idle()
        self.assertEqual(self.all(".fault"), [])
        self.assertTrue(self.one(".turn.assistant .md").text)

    def test_escape_stops_a_reply(self):
        self.say("Go on forever.")
        self.until(lambda: self.all(".turn.assistant .md > *"))
        self.assertFalse(self.one("#send").is_displayed())
        self.shot("running")
        self.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        self.idle()
        self.assertIn("You stopped this reply.", self.one(".turn.assistant .note").text)
        if self.mock:
            self.until(lambda: self.mock.gone == 1)
        self.no_script_errors()


@unittest.skipIf(SERVER, "needs the replies of the mock")
class Scripted(Page):
    """What needs a certain reply."""

    def test_markdown_is_drawn_and_nothing_is_run(self):
        self.say("rich please, think")
        self.idle()
        said = self.one(".turn.assistant .md")
        for selector in ("h2", "ol > li > ul > li", "pre code", "table td", "strong", "em"):
            self.assertTrue(said.find_elements(By.CSS_SELECTOR, selector), selector)
        self.assertIn("<b>not bold</b>", said.text)
        number = said.find_elements(By.CSS_SELECTOR, "td")[1]
        self.assertEqual(number.value_of_css_property("text-align"), "right")
        self.assertIn("snake_case_name 2*3*4", said.text)
        links = said.find_elements(By.CSS_SELECTOR, "a")
        addresses = [link.get_attribute("href") for link in links]
        self.assertEqual(addresses, ["https://example.org/a_(b)"])
        self.assertEqual(said.find_elements(By.CSS_SELECTOR, "script, img"), [])
        self.assertIsNone(self.driver.execute_script("return window.broken ?? null"))
        thought = self.one("details.thought")
        self.assertIsNone(thought.get_attribute("open"))
        self.shot("rich")
        thought.find_element(By.TAG_NAME, "summary").click()
        self.assertIn("Let me see what this is about.", thought.text)
        self.no_script_errors()

    def test_growing_text_is_drawn_as_whole_text_is(self):
        self.say("rich please")
        self.idle()
        self.assertTrue(
            self.driver.execute_script(
                """const [said] = document.querySelectorAll(".md"), text = current.turns[1].content;
                const whole = markdown(document.createElement("div"), text).innerHTML;
                const grown = document.createElement("div");
                for (let end = 1; end <= text.length; end++) markdown(grown, text.slice(0, end));
                return whole === grown.innerHTML && whole === said.innerHTML;"""
            )
        )

    def test_thoughts_alone_are_shown_and_called_so(self):
        for word, told in {"muse": "gave no answer", "muse too long": "A higher limit"}.items():
            self.say(word)
            self.idle()
            turn = self.all(".turn.assistant")[-1]
            self.assertIn("Let me see what this is about.", turn.text)
            self.assertIn(told, turn.find_element(By.CSS_SELECTOR, ".note").text)
        self.shot("thoughts")
        self.say("silence")
        self.idle()
        self.assertIn("There is no text.", self.all(".note")[-1].text)
        self.no_script_errors()

    def test_a_reply_that_the_page_left_is_marked(self):
        self.say("Go on forever.")
        self.until(lambda: self.all(".turn.assistant .md > *"))
        self.open()
        self.one("#chats .open").click()
        self.assertIn("interrupted", self.one(".turn.assistant .note").text)
        self.shot("interrupted")

    def test_the_model_says_what_to_ask_it(self):
        ideas = "#hello .ideas button"
        general = [idea.text for idea in self.all(ideas)]
        self.assertIn("Tell a joke about distributed systems.", general)
        self.mock.examples = ["What is 1 + 1?", 'Say </script> "x".']
        self.open()
        self.assertEqual([idea.text for idea in self.all(ideas)], self.mock.examples)
        self.shot("examples")
        self.one("#hello .ideas button").click()
        self.idle()
        self.assertEqual(self.mock.seen[-1]["messages"][-1]["content"], "What is 1 + 1?")
        self.no_script_errors()

    def test_errors_in_a_stream(self):
        faults = {"break": "rank 3 timed out", "vanish": "before it was complete"}
        for word, expected in faults.items():
            self.say(word)
            self.idle()
            self.assertIn(expected, self.all(".fault")[-1].text)
        self.assertIn("Half of", self.all(".turn.assistant .md")[0].text)
        self.mock.close()
        self.say("anybody?")
        self.idle()
        self.assertIn("cannot be reached", self.all(".fault")[-1].text)
        self.mock = None

    def test_a_full_queue_says_when_to_come_back(self):
        self.say("busy")
        self.idle()
        self.assertIn("Try again in 2 s", self.one(".fault").text)

    def test_a_tool_call_is_shown_and_answered(self):
        self.one("#tune").click()
        tools = '[{"type": "function", "function": {"name": "weather"}}]'
        self.one("#tools").send_keys(tools)
        self.one("#settings .main").click()
        self.say("think: weather?")
        self.idle()
        self.assertIn('"city": "Lisbon"', self.one(".call pre").text)
        self.one(".call textarea").send_keys("22 degrees, sun")
        self.shot("call")
        self.one(".call form button").click()
        self.idle()
        messages = self.mock.seen[-1]["messages"]
        self.assertEqual([message["role"] for message in messages], ["user", "assistant", "tool"])
        self.assertEqual(messages[1]["tool_calls"][0]["function"]["name"], "weather")
        self.assertEqual(messages[1]["reasoning_content"], "Let me see what this is about.")
        self.assertEqual(messages[2]["tool_call_id"], "call_1")

    def test_settings_reach_the_server(self):
        self.set("system", "Be brief.")
        self.set("temperature", "0.35")
        self.set("seed", "7")
        self.set("reasoning", "off")
        self.open()
        self.say("hi")
        self.idle()
        sent = self.mock.seen[-1]
        self.assertEqual(sent["model"], MODEL)
        self.assertEqual(sent["messages"][0], {"role": "system", "content": "Be brief."})
        self.assertEqual((sent["temperature"], sent["seed"]), (0.35, 7))
        self.assertEqual(sent["chat_template_kwargs"], {"enable_thinking": False})
        self.assertNotIn("top_p", sent)

    def test_a_key_is_asked_for(self):
        self.mock.needs_key = True
        self.driver.get(self.url)
        self.until(lambda: self.one("#settings").get_attribute("open"))
        self.one("#key").send_keys(KEY)
        self.one("#settings .main").click()
        self.until(lambda: self.one("#model span").text.endswith("context"))
        self.say("hi")
        self.idle()
        self.assertEqual(self.all(".fault"), [])

    def test_keys_alone_are_enough(self):
        text = self.one("#text")
        text.send_keys("one" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "two" + Keys.ENTER)
        self.idle()
        self.assertEqual(self.mock.seen[-1]["messages"][-1]["content"], "one\ntwo")
        self.one(".turn.user .acts button:last-child").send_keys(Keys.ENTER)
        self.assertEqual(text.get_attribute("value"), "one\ntwo")
        text.send_keys(Keys.CONTROL + "a" + Keys.NULL + "three" + Keys.ENTER)
        self.idle()
        self.assertEqual([turn.text for turn in self.all(".turn.user .said")], ["three"])

    def test_a_small_screen(self):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 390, "height": 760, "deviceScaleFactor": 2, "mobile": True},
        )
        try:
            self.open()
            self.say("rich")
            self.idle()
            script = "return document.documentElement.scrollWidth"
            self.assertLessEqual(self.driver.execute_script(script), 390)
            self.shot("small")
            self.one("#menu").click()
            self.until(lambda: self.one("#fresh").is_displayed())
            self.shot("small-menu")
            self.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
            self.until(lambda: not self.one("#fresh").is_displayed())
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def test_dark(self):
        self.one("#theme").send_keys("dark")
        self.say("rich")
        self.idle()
        self.shot("dark")
        colour = self.one("body").value_of_css_property("background-color")
        self.assertIn("23, 23, 26", colour)


del Page

if __name__ == "__main__":
    unittest.main(verbosity=2)
